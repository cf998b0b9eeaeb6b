"""Programs of the system that some tests need; `make test` installs them if it can."""

import os
import shutil

import pytest


def needed(name: str) -> str:
    """Return the path of a program; if it is missing, skip the test, or fail it in CI."""
    program = shutil.which(name)
    if program is None:
        if "CI" in os.environ:
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return program
