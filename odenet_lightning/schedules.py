"""Schedules of the learning rate, over a run's length in steps."""

from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

Schedule = Literal["constant", "one_cycle", "cosine"]


def refuse_unknown(schedule: str) -> None:
    """Refuse a schedule that there is not."""
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, not {schedule!r}")


def scheduler_of(schedule: Schedule, optimizer: Optimizer, steps: float) -> LRScheduler:
    """The scheduler of a run of so many steps, to be stepped after every batch.

    Raises:
        ValueError: the schedule needs an end, and the run has none.
    """
    if steps == float("inf"):
        raise ValueError(
            f'the schedule "{schedule}" needs the run\'s length in steps, and neither --trainer.max_time nor '
            "--trainer.max_epochs -1 gives it: add --trainer.max_steps 1000 (or another number), or give "
            "--model.schedule constant"
        )
    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=int(steps))
    # torch would also give momentum to an optimiser that was asked to have none
    has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=int(steps), cycle_momentum=has_momentum)


def refuse_longer_run(scheduler: object, steps: float) -> None:
    """Refuse a schedule, taken from a checkpoint, that would end before the run does."""
    planned = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", None)
    if planned is not None and planned < steps:
        raise ValueError(
            f"the checkpoint's schedule of the learning rate ends after {planned} steps, but this run is to take "
            f"{int(steps)}: resume with the same length, or train its weights on with a new one (fit --weights FILE)"
        )
