"""Resume: a run that continues from a checkpoint ends as one that was never interrupted."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from odenet_lightning.block import set_warm_steps, warm_steps
from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.schedules import refuse_longer_run
from odenet_lightning.trainer import continue_at, start_next_epoch


class Resume(Callback):
    """Saves and restores what a resumed run needs besides weights, optimiser and counters.

    These are each process's random state, the warm steps of the ODE blocks and the counts of the
    epoch's accuracy. A run resumed from the end of an epoch continues with the next epoch; one resumed
    from within an epoch continues with the rest of it, which takes a loader that keeps its place, as this
    project's does (Lightning warns of others). A checkpoint saved within a step is refused. With several
    processes, all start their next solves with the smallest of their warm steps.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.resumed_step: int | None = None
        self.next_epoch = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        net = classifier(pl_module).net
        steps = warm_steps(net)
        if trainer.world_size == 1 or all(step is None for step in steps):
            return
        shared = torch.tensor([float("inf") if step is None else step for step in steps], device=pl_module.device)
        lowest = trainer.strategy.reduce(shared, reduce_op="min").tolist()
        set_warm_steps(net, [None if step is None else low for step, low in zip(steps, lowest, strict=True)])

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        module = classifier(pl_module)
        if trainer.state.fn == "fit":
            checkpoint["rng"] = of_all_processes(trainer, rng_state(trainer.strategy.root_device))
            checkpoint["train_acc"] = {
                name: trainer.strategy.reduce(count.clone(), reduce_op="sum")
                for name, count in module.train_acc.metric_state.items()
                if isinstance(count, torch.Tensor)
            }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        self.resumed_step = checkpoint.get("global_step", 0)
        self.kept = {key: checkpoint[key] for key in ("rng", "train_acc") if key in checkpoint}
        self.next_epoch = continue_at(checkpoint["loops"]["fit_loop"], trainer.accumulate_grad_batches)

    def took_no_step(self, trainer: Trainer) -> bool:
        """Whether a resumed run is where its checkpoint was."""
        return trainer.global_step == self.resumed_step

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.next_epoch:
            start_next_epoch(trainer)
        states = self.kept.get("rng", [])
        if len(states) == trainer.world_size:
            set_rng_state(states[trainer.global_rank], pl_module.device)
        # the counts are sums over all processes: one of them continues with them
        if trainer.is_global_zero and self.resumed_step is not None and not self.next_epoch:
            for name, count in self.kept.get("train_acc", {}).items():
                setattr(classifier(pl_module).train_acc, name, count.to(pl_module.device))
        self.kept, self.next_epoch = {}, False
        refuse_longer_run(pl_module.lr_schedulers(), trainer.estimated_stepping_batches)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers, on the CPU and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Continue from a state; one of another kind of device is left out."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def of_all_processes(trainer: Trainer, value: Any) -> list[Any]:
    """The values of all processes, on every process."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
