"""Training steps as CUDA graphs: augmentation, forward and backward pass, clipping and optimiser step in one launch."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from lightning import Callback, LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from odenet_lightning.block import ODEBlock, withheld_solves
from odenet_lightning.gradients import Backprop
from odenet_lightning.models import Classifier
from odenet_lightning.optimizers import MuonWithAdamW
from odenet_lightning.recording import REHEARSALS, Recorded, Recorder, recorder_for
from odenet_lightning.solvers import RungeKutta, SolveStats

Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]

OPTIMIZERS = (Adam, AdamW, MuonWithAdamW)
PRECISIONS = ("32-true", "64-true", "bf16-mixed")
# hooks within a step: under a graph they would find no gradients
GRADIENT_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
MOST_GRAPHS = 8  # each holds a step's memory


class Rates:
    """An optimiser's learning rates and first betas as tensors, since schedules change them in every step.

    All other settings are recorded as constants.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.is_capturable = device.type == "cuda"  # which torch refuses elsewhere
        self.tensors = [torch.zeros(2, dtype=torch.float64, device=device).unbind() for _ in optimizer.param_groups]

    def update(self) -> None:
        """Copy the current values into the tensors."""
        for (lr, beta1), group in zip(self.tensors, self.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
            beta1.fill_(group["betas"][0])

    @contextmanager
    def in_groups(self) -> Iterator[None]:
        """Put the tensors into the optimiser's groups; afterwards restore the numbers, which checkpoints keep."""
        groups = self.optimizer.param_groups
        numbers = [dict(group) for group in groups]
        for (lr, beta1), group in zip(self.tensors, groups, strict=True):
            # torch's fused and foreach steps would read the value of beta1, and so wait for the device
            way = {"capturable": self.is_capturable, "fused": False, "foreach": False}
            group.update(lr=lr, betas=(beta1, group["betas"][1]), **way)
        try:
            yield
        finally:
            for group, kept in zip(groups, numbers, strict=True):
                group.clear()
                group.update(kept)


class RecordedStep:
    """A training step on batches of one shape with one setting of solvers and optimiser."""

    def __init__(
        self, module: LightningModule, net: Classifier, losses: Losses, recorder: Recorder, batch: tuple[Tensor, Tensor]
    ) -> None:
        self.module, self.net, self.losses = module, net, losses
        self.optimizer = module.trainer.optimizers[0]
        self.rates = Rates(self.optimizer, module.device)
        for state in self.optimizer.state.values():  # of a resumed run: torch keeps the count of steps on the CPU
            if "step" in state:
                state["step"] = state["step"].to(module.device)
        self.solves: list[tuple[ODEBlock, SolveStats]] = []
        self.recorded = Recorded(self._step, recorder, batch)

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take the step; returns the loss before it, and the logits."""
        self.rates.update()
        loss, logits = self.recorded(*batch)
        for block, stats in self.solves:  # with equal steps, the same each time
            block.tell(stats)
        return loss, logits

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        trainer = self.module.trainer
        self.optimizer.zero_grad()
        with withheld_solves(self.net) as self.solves:
            loss, logits, _ = self.losses(images, labels)
        with torch.autocast(images.device.type, enabled=False):
            loss.backward()
            self.module.configure_gradient_clipping(
                self.optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )
            with self.rates.in_groups():
                self.optimizer.step()
        self.optimizer.zero_grad()  # so that Lightning's own step finds nothing to do
        return loss, logits


class StepGraphs:
    """The recorded training steps of a run; what cannot be recorded is left to Lightning, with a warning.

    The results are those of steps without a graph, to rounding. `take` does the whole step, so afterwards there are no
    gradients, and Lightning's backward pass and optimiser step are to do nothing. Validation runs without a graph.

    Args:
        module: the module that is trained.
        net: its network.
        losses: images and labels to the loss, the logits and a regularizer's value, of which there is none.

    Attributes:
        took_step: whether the last batch's step has been taken by a graph.
    """

    def __init__(self, module: LightningModule, net: Classifier, losses: Losses) -> None:
        self.module, self.net, self.losses = module, net, losses
        self.steps: dict[Hashable, RecordedStep | None] = {}
        self.warned: set[str] = set()
        self.took_step = False

    def take(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Do a whole training step; returns the loss and the logits, or None where it is left to Lightning."""
        self.took_step = False
        key = self._key(batch)
        if key not in self.steps:
            self.steps[key] = self._new_step(batch)
        step = self.steps[key]
        if step is None:
            return None
        result = step(batch)
        self.took_step = True
        if step.recorded.calls == REHEARSALS and step.recorded.waits:
            self._warn("the network or the optimiser reads values from the device")
            self.steps[key] = None
        return result

    def _new_step(self, batch: tuple[Tensor, Tensor]) -> RecordedStep | None:
        recorder = recorder_for(self.module.device)
        obstacle = find_obstacle(self.module, self.net)
        if recorder is None:
            obstacle = f"there are none on the device {self.module.device.type}"
        elif sum(step is not None for step in self.steps.values()) >= MOST_GRAPHS:
            obstacle = f"{MOST_GRAPHS} settings have one already"
        if obstacle is not None or recorder is None:
            self._warn(str(obstacle))
            return None
        return RecordedStep(self.module, self.net, self.losses, recorder, batch)

    def _warn(self, obstacle: str) -> None:
        if obstacle not in self.warned:
            self.warned.add(obstacle)
            rank_zero_warn(f"training steps run without a CUDA graph: {obstacle}")

    def _key(self, batch: tuple[Tensor, Tensor]) -> Hashable:
        """Everything that a recorded step assumes to be constant."""
        trainer, modules = self.module.trainer, list(self.net.modules())
        solves = tuple((m.solver, m.gradient, m.max_nfe) for m in modules if isinstance(m, ODEBlock))
        states = tuple(m.training for m in modules)
        parameters = tuple((p.data_ptr(), p.requires_grad) for p in self.net.parameters())
        constants = tuple(
            repr({name: value for name, value in group.items() if name not in ("params", "lr", "betas")})
            + str((len(group["params"]), group.get("betas", ())[1:]))
            for group in trainer.optimizers[0].param_groups
        )
        shapes = tuple((x.shape, x.dtype) for x in batch)
        return solves, states, parameters, constants, shapes, trainer.accumulate_grad_batches


def find_obstacle(module: LightningModule, net: Classifier) -> str | None:
    """Why a training step cannot be recorded, as far as that is known before it runs."""
    trainer, optimizer = module.trainer, module.trainer.optimizers[0]
    if trainer.world_size > 1:
        return "several processes exchange their gradients"
    if trainer.precision not in PRECISIONS:
        return f"precision {trainer.precision} decides by the gradients' values whether to take a step"
    if trainer.accumulate_grad_batches > 1:
        return "gradients are accumulated"
    if getattr(module, "regularizer", None) is not None:
        return "a regularizer reads values from the device"
    if type(optimizer) not in OPTIMIZERS:
        names = ", ".join(kind.__name__ for kind in OPTIMIZERS)
        return f"{type(optimizer).__name__} is none of {names}"
    for owner in (module, *trainer.callbacks):  # pyright: ignore[reportAttributeAccessIssue]
        for name in GRADIENT_HOOKS:
            if is_overridden(owner, name):
                return f"{type(owner).__name__}.{name} wants the gradients"
    for block in net.modules():
        if isinstance(block, ODEBlock):
            if not isinstance(block.solver, RungeKutta) or block.solver.controls_error:
                return f"{block.solver!r} chooses its steps while it solves"
            if type(block.gradient) is not Backprop:
                return f"{block.gradient!r} reads values from the device"
    return None


def is_overridden(owner: LightningModule | Callback, name: str) -> bool:
    """Whether a hook is not Lightning's own."""
    base = LightningModule if isinstance(owner, LightningModule) else Callback
    return getattr(getattr(owner, name), "__func__", None) is not getattr(base, name)
