"""The wall clock of the soak's workers, which is set again and again; other clocks go on."""

from pathlib import Path

from soaking.journal import Journal, RandomSource

LIBRARIES = "usr/lib/**/faketime/libfaketime.so.1"
STEPS = (2, 30, 600, 3_600, 100_000)
"""Seconds by which the clock is set forward or back."""


class WallClock:
    """The wall clock of processes started with `environ`; needs Debian's `faketime`.

    The processes see a step within a second.

    Source: libfaketime's README, "Advanced features".
    """

    def __init__(self, folder: Path) -> None:
        library = next(Path("/").glob(LIBRARIES), None)
        if library is None:
            raise SystemExit("Install faketime: the soak needs it to set the clock of its workers")
        self._file = folder / "wall-clock"
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds; reading the file each time is slow
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: float) -> None:
        """Set the clock to `seconds` after the true time, or before it if negative."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.rename(self._file)


async def inject_clock_steps(clock: WallClock, journal: Journal, rng: RandomSource) -> None:
    """Set the clock forward, back, or to the true time, at random intervals."""
    while await journal.sleep(rng.uniform(2, 15)):
        with journal.fault("clock stepped"):
            clock.set(rng.choice((0, 1, -1)) * rng.choice(STEPS))
