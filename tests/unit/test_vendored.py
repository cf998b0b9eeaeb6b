import hashlib
import re
from pathlib import Path

import pytest

from mailer.web import assets

AUDIT = Path(__file__).parents[1] / "browser" / "vendor"


@pytest.mark.parametrize("folder", [assets.FOLDER, AUDIT], ids=lambda folder: folder.name)
def test_vendored_files_are_what_they_are_said_to_be(folder: Path) -> None:
    told = re.findall(
        r"^\| (\S+) \| ([0-9a-f]{64}) \|$",
        (folder / "VENDORED.md").read_text(),
        re.MULTILINE,
    )
    found = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("*/*")
    }
    assert told
    assert dict(told) == found
