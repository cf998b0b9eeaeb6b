"""Programs that some tests need and that are no Python packages; `make` installs them if it can."""

import os
import shutil
from typing import NoReturn

import pytest

NOT_INSTALLED = "is not installed"
"""The end of the reason of every test that is skipped for lack of a program."""


def find_program(name: str) -> str:
    """Return the path of a program; if it is missing, skip the test, or fail it in CI."""
    return shutil.which(name) or skip_or_fail(name)


def skip_or_fail(name: str) -> NoReturn:
    """Skip the test because a program is not installed, or fail it in CI."""
    if "CI" in os.environ:
        pytest.fail(f"{name} {NOT_INSTALLED}")
    pytest.skip(f"{name} {NOT_INSTALLED}")
