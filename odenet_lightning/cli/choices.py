"""The length of a run for which none is given, and a seed drawn at random."""

import os
from random import SystemRandom

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.callbacks import datamodule
from odenet_lightning.cli.errors import UsageError

# epochs of a run without a given length: more would gain little accuracy
FULL_EPOCHS = 3
SMALL_EPOCHS = 16
SMALL = 10_000  # training images


class RunLength(Callback):
    """Sets the length of a run without one, by the number of its training images."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # the digits are known now, the schedule is not yet made
            data = datamodule(trainer)
            is_small = data is not None and len(data.parts["train"]) < SMALL
            trainer.fit_loop.max_epochs = SMALL_EPOCHS if is_small else FULL_EPOCHS


def drawn_seed(seed: bool | int) -> bool | int:
    """The run's seed; for `true`, a random one.

    Raises:
        UsageError: several processes, started by someone else, would each draw their own.
    """
    if seed is not True:
        return seed
    given = os.environ.get("PL_GLOBAL_SEED")  # so Lightning tells the processes that it starts
    if given is None and max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS")) > 1:
        raise UsageError("--seed_everything true would draw another seed in each process: give a number")
    return SystemRandom().randrange(2**32) if given is None else int(given)
