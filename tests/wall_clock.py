"""The wall clock of a mailer process, which a test sets while the process runs.

The library libfaketime changes the time that the process sees. Its monotonic clocks, which measure
durations, stay right.
"""

from pathlib import Path

from tests.programs import find_program


class WallClock:
    """The wall clock of a process; the database and the gateway of a test keep the true time.

    The process is started with the environment variables in `environ`, and with those in `loader`,
    which must be set before Python starts. Source: libfaketime's README, "Advanced features".
    """

    def __init__(self, folder: Path) -> None:
        program = Path(find_program("faketime"))
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
        """Set the clock to `seconds` after the true time, or before it if negative."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.rename(self._file)  # atomic, for processes that read the file meanwhile
