"""A virtual environment with the Python packages of the peers, PgQueuer and Celery.

mailer does not need these packages, so they are not in its own environment.
"""

import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = Path(__file__).parents[2] / ".venv" / "peers"
"""Inside `.venv`, which `make` creates and `make clean` removes."""


def peers_python() -> Path:
    """Return the interpreter that has the packages of `requirements.txt`.

    Installs them if they are missing, or if `requirements.txt` has changed since.
    """
    python = FOLDER / "bin" / "python"
    installed = FOLDER / REQUIREMENTS.name  # a copy of what was installed
    if installed.exists() and installed.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    print(f"Setting up {FOLDER}, once", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)  # noqa: S603  # all arguments are constants
    options = ["-qq", "--disable-pip-version-check", "--no-input", "--require-hashes"]
    subprocess.run(  # noqa: S603  # likewise
        [python, "-m", "pip", "install", *options, "-r", REQUIREMENTS], check=True
    )
    shutil.copy(REQUIREMENTS, installed)
    return python
