"""Programs that are installed for a test, where that is possible."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock


def install(programs: tuple[str, ...], packages: tuple[str, ...]) -> None:
    """Install packages by apt-get (as root) if a program of theirs is missing; one process of tests at a time."""
    with FileLock(Path(tempfile.gettempdir()) / "odenet_lightning_tests_apt.lock"):
        if None not in map(shutil.which, programs) or shutil.which("apt-get") is None or os.geteuid() != 0:
            return
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", *packages]):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=600, check=False)
