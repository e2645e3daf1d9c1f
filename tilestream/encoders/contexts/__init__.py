"""Fitted contexts: their files, and those that come with the package."""
