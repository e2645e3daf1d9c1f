"""Heads in a run: whether they fit what they are given, what they take, and in which stages they are worked."""
