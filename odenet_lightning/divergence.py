"""When training diverges: the loss or the weights are NaN or infinite."""

from lightning import Trainer

REMEDY = "try a smaller learning rate, --trainer.gradient_clip_val 1, or an adaptive solver"


class DivergenceError(RuntimeError):
    """The loss or the weights are NaN or infinite."""


def check_finite(trainer: Trainer) -> None:
    """Refuse to keep weights that are no numbers over ones that are.

    Raises:
        DivergenceError: some are not finite.
    """
    for name, weight in trainer.lightning_module.named_parameters():
        if not weight.isfinite().all():
            raise DivergenceError(f"the weights {name} are not finite after step {trainer.global_step}: {REMEDY}")
