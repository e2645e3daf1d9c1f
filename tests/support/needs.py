"""What a test needs beside the packages of the extra `test`."""

import os

import pytest


def without(reason):
    """Skip a test whose need is not met; in CI, which has to see to it, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
