"""Programs of the system that some tests need; `make test` installs them where it may."""

import os
import shutil

import pytest


def needed(name: str) -> str:
    """Return the path of a program; without it the test is skipped, and fails in CI."""
    program = shutil.which(name)
    if program is None:
        if "CI" in os.environ:
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return program
