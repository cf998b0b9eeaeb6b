"""Files of other projects that are kept in this repository have the checksums in VENDORED.md."""

import hashlib
import re
from pathlib import Path

import pytest

from mailer.web import assets

BROWSER_TEST_FOLDER = Path(__file__).parents[1] / "browser" / "vendor"


@pytest.mark.parametrize(
    "folder", [assets.ASSETS, BROWSER_TEST_FOLDER], ids=lambda folder: folder.name
)
def test_vendored_files_have_the_listed_checksums(folder: Path) -> None:
    listed_checksums = re.findall(
        r"^\| (\S+) \| ([0-9a-f]{64}) \|$",
        (folder / "VENDORED.md").read_text(),
        re.MULTILINE,
    )
    actual_checksums = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("*/*")
    }
    assert listed_checksums
    assert dict(listed_checksums) == actual_checksums
