"""EventFile: hyperparameters and resumed curves in TensorBoard's event file."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard.summary import hparams as hparams_summary
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.module import ClassifierModule
from odenet_lightning.trainer import datamodule, tensorboard


class EventFile(Callback):
    """Keeps TensorBoard's event file complete: hyperparameters in, no step twice.

    A run that continues in the same folder (a requeued SLURM job) tells TensorBoard to forget
    what was written after its checkpoint, since those steps are taken again.

    (`SummaryWriter(purge_step=...)` cannot be used: Lightning creates the writer before it reads the checkpoint.)
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the hyperparameters once, with what only a set-up run knows, beside the metrics really logged."""
        writer = tensorboard(trainer)
        if writer is None:
            return
        file = writer._get_file_writer()
        if trainer.global_step > 0:
            restart = SessionLog(status=SessionLog.START)
            file.add_event(Event(step=trainer.global_step, file_version="brain.Event:2"))
            file.add_event(Event(step=trainer.global_step, session_log=restart))
        data = datamodule(trainer)
        values = headline(trainer, classifier(pl_module))
        values |= {**flatten(dict(pl_module.hparams)), "num_params": classifier(pl_module).num_params}
        if data is not None:
            values |= flatten({"data": dict(data.hparams)}) | {"data.digits_used": data.digits_used}
        values |= {"precision": str(trainer.precision), "processes": trainer.world_size}
        # the metrics' values come from the curves of the same names; the zeros are written nowhere
        experiment, session, _ = hparams_summary(values, {"val/acc": 0.0, "val/loss": 0.0})
        for summary in (experiment, session):
            file.add_summary(summary)


def headline(trainer: Trainer, module: ClassifierModule) -> dict[str, str | int | float | bool]:
    """The main differences between runs, for the first columns of TensorBoard's table."""
    block = next(iter(module.net.ode_blocks), None)
    ode = {} if block is None else {"solver": block.solver, "gradient": block.gradient}
    parts = {"network": module.net, **ode, "optimizer": trainer.optimizers[0]}
    names = {name: type(part).__name__ for name, part in parts.items()}
    group = trainer.optimizers[0].param_groups[0]
    return {**names, "lr": float(group.get("max_lr", group.get("initial_lr", group["lr"])))}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested plain values as one level of dotted names; what is neither number nor text becomes text."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in tree.items():
        if key.startswith("_"):
            continue
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
