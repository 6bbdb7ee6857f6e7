"""The command line in a process of its own, for studies of whole runs."""

import os
import subprocess
import sys
import time
from pathlib import Path


def run_command(args: list[str], folder: Path, threads: int | None = None) -> float:
    """Run `python -m odenet_lightning ARGS` in a folder; returns its seconds, from start to end of the process.

    Args:
        args: what follows the program's name.
        folder: the working directory; made if need be.
        threads: CPU threads, by default as many as the environment allows.

    Raises:
        RuntimeError: the command failed, with the last line that it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "odenet_lightning", *args], cwd=folder, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"'{' '.join(args[:3])} ...' ended with code {done.returncode}: {said[-1]}")
    return seconds
