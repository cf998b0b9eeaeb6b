"""The wall clock of the soak's mailers, set again and again while all other clocks go on."""

from pathlib import Path

from soaking.journal import Draw, Journal

LIBRARIES = "usr/lib/**/faketime/libfaketime.so.1"
STEPS = (2, 30, 600, 3_600, 100_000)
"""Seconds by which it is set forward or back."""


class WallClock:
    """What mailers that are started with `environ` take for the time; needs Debian's `faketime`.

    They notice a step within a second.

    Source: libfaketime's README, "Advanced features".
    """

    def __init__(self, folder: Path) -> None:
        library = next(Path("/").glob(LIBRARIES), None)
        if library is None:
            raise SystemExit("install faketime: the soak sets the clock of its mailers")
        self._file = folder / "wall-clock"
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # to read the file each time would slow all down
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: float) -> None:
        """Set it to so many seconds after the true time, or before."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.rename(self._file)


async def trouble_clock(clock: WallClock, journal: Journal, draw: Draw) -> None:
    """Set the clock forward, back, or right again."""
    while await journal.rest(draw.uniform(2, 15)):
        with journal.trouble("clock stepped"):
            clock.set(draw.choice((0, 1, -1)) * draw.choice(STEPS))
