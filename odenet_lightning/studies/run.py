"""Run a study: measure what is missing, keep every row, draw, print."""

import hashlib
import json
import math
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from odenet_lightning import __version__
from odenet_lightning.figures import release
from odenet_lightning.studies.columns import as_text, paragraph
from odenet_lightning.studies.rows import Ledger
from odenet_lightning.studies.study import Row, Study

SAID = 30  # characters of a case beside a bar
PAUSE = 5.0  # seconds between the lines of a log

COMPARED = ("version", "commit", "torch", "hardware", "threads")


def commit() -> str | None:
    """The commit of this package's source, with a hash of what was changed since; None outside of its git."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # or it is installed into some other project
        changes = git("diff", "HEAD", "--", "..")
        return git("rev-parse", "--short", "HEAD") + (
            f"+{hashlib.sha1(changes.encode()).hexdigest()[:6]}" if changes else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: str) -> str:
    """The name of the GPU or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def provenance(study: Study) -> Row:
    """The code, hardware and settings that rows are measured with."""
    settings = study.settings()
    return {
        "seed": study.seed,
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "hardware": hardware(study.device),
        "threads": torch.get_num_threads(),
        "config": json.dumps(settings, sort_keys=True),
    }


def run(study: Study, folder: Path) -> list[Row]:
    """Measure the cases that the folder's rows.csv lacks; then write figure.png, TensorBoard's, and the table.

    A lock keeps a second run out of the folder; the system frees it when a run ends in whatever way.

    Args:
        study: what to measure.
        folder: where its files go; made if need be.

    Raises:
        ValueError: rows.csv there is not this study's, or another run is at work in the folder.
    """
    print(paragraph(f"{folder.name}: {study.question()}", "  "), flush=True)
    study.check()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return measure(study, folder)
    except Timeout:
        raise ValueError(f"another run is at work in {folder}: wait for it, or name another --folder") from None


def measure(study: Study, folder: Path) -> list[Row]:
    """Do what `run` does, holding its lock."""
    ledger, source = Ledger(folder / "rows.csv"), provenance(study)
    study.folder, study.provenance = folder, source
    cases = study.cases()
    known = ledger.find(cases, str(source["config"]))
    warn_of_others([row for row in known if row], source)
    missing = [case for case, row in zip(cases, known, strict=True) if row is None]
    if len(missing) < len(cases):
        print(f"{len(cases) - len(missing)} of {len(cases)} rows are there already ({ledger.path})")
    for case in told(missing, folder.name):
        # a case's own seed replaces the study's
        ledger.append({**case, **study.measure(case), **{k: v for k, v in source.items() if k not in case}})
    rows = [row for row in ledger.find(cases, str(source["config"])) if row is not None]
    publish(study.draw(rows), folder, len(rows))
    study.extras(rows)
    print(as_text(study.table(rows), study.columns))
    print("\n" + paragraph(f"answer: {study.answer(rows)}", "  "))
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in (".csv", ".png", ".gif")))
    print(f"\n{len(rows)} rows: {folder} ({files})\ncurves   tensorboard --logdir {folder.parent}", flush=True)
    return rows


def told(cases: list[Row], name: str) -> Iterator[Row]:
    """The cases one by one, each named on the screen while it is measured: beside a bar, or in the lines of a log."""
    said_at = -math.inf
    with tqdm(total=len(cases), desc=name, unit="row", disable=None, file=sys.stderr) as bar:
        for index, case in enumerate(cases):
            said = ", ".join(f"{key} {value}" for key, value in case.items() if value is not None)
            bar.set_postfix_str(said[:SAID])
            if bar.disable and time.monotonic() > said_at + PAUSE:
                print(f"{name}: row {index + 1} of {len(cases)}: {said}", file=sys.stderr, flush=True)
                said_at = time.monotonic()
            yield case
            bar.update()


def warn_of_others(rows: list[Row], source: Row) -> None:
    """Warn of kept rows that another version, commit or machine measured."""
    for key in COMPARED:
        others = {str(row[key]) for row in rows} - {str(source[key])}
        if others:
            print(
                f"warning: rows from another {key} are kept ({', '.join(sorted(others))}; now {source[key]}); "
                "name another --folder to measure all of them anew",
                file=sys.stderr,
            )


def publish(figure: Figure, folder: Path, step: int) -> None:
    """Write a figure as PNG and into TensorBoard's event file, and release it."""
    figure.savefig(folder / "figure.png")
    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("study", figure, step, close=False)
    release(figure)
