"""Runs of the command line in processes of their own, which may be killed. Forked: nothing is imported twice."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from odenet_lightning.cli import main


class KillAt(Callback):
    """Sends a process a signal, by default that of `kill -9`, after so many optimiser steps.

    Args:
        step: the step.
        moment: a hook of Lightning's callbacks.
        rank: which of several processes.
        number: the signal's; 2 is Ctrl-C's.
    """

    def __init__(self, step: int, moment: str = "on_train_batch_end", rank: int = 0, number: int = 9) -> None:
        self.step, self.rank, self.number = step, rank, number
        setattr(self, moment, self._kill)

    def _kill(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step >= self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def _quiet(call: Callable[[], Any], folder: Path) -> None:
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what runs in its background
    with (folder / "out.log").open("a") as log:
        sys.stdout = sys.stderr = log
        try:
            call()
        except SystemExit as ended:
            log.flush()
            os._exit(int(ended.code or 0))
        log.flush()
    os._exit(0)


def run(call: Callable[[], Any], folder: Path, timeout: float = 120.0) -> int:
    """Run a call in a process of its own, its output in folder/out.log; returns its exit code, -9 if killed."""
    process = multiprocessing.get_context("fork").Process(target=_quiet, args=(call, folder))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError((folder / "out.log").read_text()[-2_000:])
    assert process.exitcode is not None
    return process.exitcode


def command(args: list[str], folder: Path, timeout: float = 120.0) -> int:
    """Run the command line so."""
    return run(lambda: main(args), folder, timeout)


class Explode(Callback):
    """Makes a network's weights huge after so many steps.

    Args:
        step: the step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Multiply them."""
        if trainer.global_step == self.step:
            for parameter in pl_module.parameters():
                parameter.data.mul_(float("inf"))


class Watch(Callback):
    """Writes resident memory, in bytes, and the number of open files to watch.txt.

    Args:
        steps: after which steps.
    """

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line."""
        if trainer.global_step in self.steps:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with Path("watch.txt").open("a") as file:
                file.write(f"{pages * os.sysconf('SC_PAGE_SIZE')} {len(os.listdir('/proc/self/fd'))}\n")
