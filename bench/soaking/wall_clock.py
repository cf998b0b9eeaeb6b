"""The wall clock of the soak's workers, which the soak sets again and again.

libfaketime changes the wall clock that a process sees. Monotonic clocks stay right, and so does the
wall clock of PostgreSQL, of the gateway and of the soak itself.
"""

from pathlib import Path

from soaking.journal import Journal, RandomSource

LIBRARY_PATTERN = "usr/lib/**/faketime/libfaketime.so.1"
STEPS = (2, 30, 600, 3_600, 100_000)
"""Seconds by which the clock is set forward or back."""


class WallClock:
    """The wall clock of all processes that are started with the environment `environ`.

    The processes see a change within a second. Needs Debian's `faketime`; exits if it is missing.
    Source of the variables: libfaketime's README, "Advanced features".
    """

    def __init__(self, folder: Path) -> None:
        library = next(Path("/").glob(LIBRARY_PATTERN), None)
        if library is None:
            raise SystemExit("Install faketime: the soak needs it to set the clock of its workers")
        self._file = folder / "wall-clock"
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds between two reads of the file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: float) -> None:
        """Set the clock to `seconds` after the true time, or before it if negative."""
        new_file = self._file.with_suffix(".new")
        new_file.write_text(f"{seconds:+}\n")
        new_file.rename(self._file)  # at once, so that no process reads half of it


async def inject_clock_steps(clock: WallClock, journal: Journal, rng: RandomSource) -> None:
    """Set the clock forward, back, or to the true time, at random intervals."""
    while await journal.sleep(rng.uniform(2, 15)):
        with journal.fault("clock stepped"):
            direction = rng.choice((0, 1, -1))
            clock.set(direction * rng.choice(STEPS))
