"""What does the loop cost? Lightning's against a bare PyTorch loop; two processes against two threads."""

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from typing_extensions import override

from odenet_lightning.callbacks import EvaluationCounts, Throughput
from odenet_lightning.data import MNISTDataModule, normalise
from odenet_lightning.models import ODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.studies.command import run_command
from odenet_lightning.studies.pairs import PairStudy, Way
from odenet_lightning.studies.study import Row, number
from odenet_lightning.studies.training import trainer_for

LIGHTNING, BARE = "Lightning's Trainer", "a bare PyTorch loop"
PROCESSES = {"two processes of one thread": 2, "one process of two threads": 1}
WARM_UP = 10  # steps before the clock starts


class Clock(Callback):
    """Times the steps of a run from the `WARM_UP`-th on."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARM_UP:
            self.started = time.perf_counter()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


@dataclass
class Loop(PairStudy):
    """Milliseconds per step of whole training loops, the first steps not counted.

    Lightning runs with the callbacks, metrics and logger that `fit` gives it (pictures and checkpoints come once an
    epoch and are left out), on the same network (`ODENet`), data and optimiser as the bare loop. Processes are started
    by `fit --trainer.devices 2` with the built-in recipe, each with half of twice the batch.

    Args:
        batch_size: images per step; twice as many in the pair of processes.
        steps: per run.
    """

    batch_size: int = 128
    steps: int = 110

    work: ClassVar[str] = "a step of a training loop"
    quick: ClassVar[dict[str, Any]] = {"batch_size": 32, "steps": 25, "repeats": 1}

    def check(self) -> None:
        """Refuse runs that end before the clock starts."""
        super().check()
        if self.steps <= 2 * WARM_UP:
            raise ValueError(f"steps must be more than {2 * WARM_UP}, of which the first ones are not timed")

    def cases(self) -> list[Row]:
        """Both pairs."""
        two, one = PROCESSES
        return [
            {"a": LIGHTNING, "b": BARE, "batch": self.batch_size},
            {"a": two, "b": one, "batch": 2 * self.batch_size},
        ]

    def ways(self, case: Row) -> tuple[Way, Way]:
        """Two loops, or one command with two numbers of processes."""
        if case["a"] == LIGHTNING:
            return self.lightning, self.bare
        batch = int(number(case, "batch"))
        two, one = PROCESSES.values()
        return lambda: self.command(two, batch), lambda: self.command(one, batch)

    def _parts(self) -> tuple[ODENet, MNISTDataModule]:
        """A network and digits, always the same."""
        torch.manual_seed(self.seed)
        data = copy.copy(self.data())
        data.batch_size, data.augment = self.batch_size, None
        return ODENet().to(self.device), data

    def lightning(self) -> float:
        """Milliseconds per step of Lightning's loop."""
        net, data = self._parts()
        module = ClassifierModule(net, lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9), schedule="constant")
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_for(
                self.device,
                max_steps=self.steps,
                limit_val_batches=0,
                logger=TensorBoardLogger(folder, default_hp_metric=False),
                log_every_n_steps=50,
                callbacks=[EvaluationCounts(), Throughput(), clock],
            )
            trainer.fit(module, data)
        return clock.seconds / (self.steps - WARM_UP) * 1e3

    def bare(self) -> float:
        """Milliseconds per step of a loop of five lines."""
        net, data = self._parts()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
        step, started = 0, 0.0
        while True:
            for pixels, labels in data.train_dataloader():
                if step == self.steps:
                    return (time.perf_counter() - started) / (self.steps - WARM_UP) * 1e3
                if step == WARM_UP:
                    started = time.perf_counter()
                optimizer.zero_grad()
                F.cross_entropy(net(normalise(pixels).to(self.device)), labels.to(self.device)).backward()
                optimizer.step()
                step += 1

    def command(self, processes: int, batch: int) -> float:
        """Milliseconds per step of a `fit`, the median of its records after the first steps."""
        with tempfile.TemporaryDirectory() as folder:
            args = ["fit", "--data.source", str(self.data().digits_used), "--data.root", str(Path(self.root).resolve())]
            args += ["--data.batch_size", str(batch // processes), "--trainer.devices", str(processes)]
            args += ["--trainer.accelerator", "cpu", "--trainer.max_steps", str(self.steps)]
            args += ["--trainer.log_every_n_steps", str(WARM_UP), "--trainer.limit_val_batches", "1"]
            args += ["--pictures.every_n_epochs", "0"]
            run_command(args, Path(folder), threads=2 // processes)
            events = EventAccumulator(f"{folder}/lightning_logs/version_0").Reload()
            rates = [event.value for event in events.Scalars("perf/images_per_second") if event.step >= WARM_UP]
        return batch / statistics.median(rates) * 1e3
