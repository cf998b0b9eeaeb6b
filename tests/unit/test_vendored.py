"""Vendored files have the checksums listed in VENDORED.md."""

import hashlib
import re
from pathlib import Path

import pytest

from mailer.web import assets

BROWSER_TEST_FILES = Path(__file__).parents[1] / "browser" / "vendor"


@pytest.mark.parametrize(
    "folder", [assets.ASSETS, BROWSER_TEST_FILES], ids=lambda folder: folder.name
)
def test_vendored_files_have_the_listed_checksums(folder: Path) -> None:
    listed = re.findall(
        r"^\| (\S+) \| ([0-9a-f]{64}) \|$",
        (folder / "VENDORED.md").read_text(),
        re.MULTILINE,
    )
    actual = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("*/*")
    }
    assert listed
    assert dict(listed) == actual
