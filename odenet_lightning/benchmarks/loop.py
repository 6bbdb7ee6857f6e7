"""python -m odenet_lightning.benchmarks.loop: what Lightning's loop adds to a bare PyTorch loop.

Both train the same network on the same batches with the same solver, in turn; Lightning with this
project's callbacks, metrics and logger on, as `fit` has them (pictures and checkpoints come once an epoch
and are left out). Prints the ratio of the times a step.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn import functional as F

from odenet_lightning.callbacks import EvaluationCounts, Throughput
from odenet_lightning.data import Digits, EvaluationBatches, normalise
from odenet_lightning.models import ODENet
from odenet_lightning.module import ClassifierModule

WARM_UP = 10  # steps before the clock starts


class MadeUpDigits(LightningDataModule):
    """Random digits, loaded and converted as `MNISTDataModule` does it."""

    def __init__(self, steps: int, batch_size: int) -> None:
        super().__init__()
        count = steps * batch_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 28, 28), generator=generator).to(torch.uint8)
        self.digits = Digits(images, torch.randint(10, (count,), generator=generator))
        self.batch_size = batch_size

    def train_dataloader(self) -> EvaluationBatches:
        """In order, so that both loops see the same batches."""
        return EvaluationBatches(self.digits, self.batch_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """uint8 to [-1, 1]."""
        del dataloader_idx
        return normalise(batch[0]), batch[1]


class Clock(Callback):
    """Times the steps after the first `WARM_UP`."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start it."""
        if batch_idx == WARM_UP:
            self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self.seconds = time.perf_counter() - self.started


def make_net() -> ODENet:
    """The post's network, always with the same weights."""
    torch.manual_seed(0)
    return ODENet()


def lightning_seconds(data: MadeUpDigits, folder: str) -> float:
    """Seconds that Lightning takes over the batches after the first."""
    module = ClassifierModule(make_net(), lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9), schedule="constant")
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=TensorBoardLogger(folder, default_hp_metric=False),
        callbacks=[EvaluationCounts(), Throughput(), clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return clock.seconds


def bare_seconds(data: MadeUpDigits) -> float:
    """Seconds that a loop of five lines takes over the same batches."""
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    started = 0.0
    for index, (pixels, labels) in enumerate(data.train_dataloader()):
        if index == WARM_UP:
            started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(normalise(pixels)), labels).backward()
        optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=110, help=f"steps a run, the first {WARM_UP} not timed")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = MadeUpDigits(args.steps, args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(lightning_seconds(data, folder), bare_seconds(data)) for _ in range(args.repeats)]
    ratios = [a / b for a, b in pairs]
    timed = args.steps - WARM_UP
    low, ratio, high = statistics.quantiles(ratios, n=4)
    ours, bare = (statistics.median(pair[i] for pair in pairs) / timed * 1e3 for i in (0, 1))
    print(
        f"torch {torch.__version__}, {args.threads} threads, batch {args.batch_size}, n = {args.repeats} pairs of runs"
    )
    print(f"Lightning {ours:.1f} ms a step, bare loop {bare:.1f} ms: {ratio:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
