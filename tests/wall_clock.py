"""A wall clock that a test sets while a process runs; monotonic clocks go on, as real ones do."""

from pathlib import Path

from tests.programs import needed


class WallClock:
    """The wall clock of a process with its `loader` and `environ`, ahead of the true time as set.

    Source: libfaketime's README, "Advanced features". The database and the gateway of a test keep
    the true time.
    """

    def __init__(self, folder: Path) -> None:
        program = Path(needed("faketime"))
        library = next(program.parents[1].glob("lib/**/faketime/libfaketime.so.1"))
        self.loader = (
            ("LD_PRELOAD", str(library)),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        )
        self._file = folder / "wall-clock"
        self.set(0)
        self.environ = {"FAKETIME_TIMESTAMP_FILE": str(self._file)}

    def set(self, seconds: float) -> None:
        """Set it to so many seconds after the true time, or before."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.rename(self._file)  # at once, whoever reads it meanwhile
