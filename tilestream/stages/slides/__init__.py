"""Slide encoders at work: what they may be given, and how a slide passes through one."""
