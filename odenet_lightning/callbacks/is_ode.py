"""IsODE: whether what was trained is an ODE, at the end of every run; and, on demand, that it stays one."""

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.certificate import Certificate, certify
from odenet_lightning.refinement import next_level, refined
from odenet_lightning.solvers import Solver, SolverError
from odenet_lightning.trainer import tensorboard, validation_images


class IsODE(Callback):
    """Says at the end of `fit`, `validate` and `test` whether the network is an ODE (see `certificate`).

    In `fit` it uses images of the last validation's first batches, no test images, and logs the scalars `ode/...`. With
    several processes, it uses the first one's images. A network without an ODE block is left alone.

    With `keep` it also makes the network stay an ODE, or become one. Before each validation of `fit` it doubles the
    number of steps (or divides the tolerances by ten) until an accurate solver changes the predictions by no more than
    `keep`, and goes one level back, never below the start, if that is good enough (see `refinement.next_level`).
    Validation, checkpoints and further training use the chosen solver; with `CoarseStart`, it is the one that follows
    the coarse solver. Weights that have long been trained with too few steps may not become an ODE again, so a short
    run needs several validations per epoch (`--trainer.val_check_interval 0.2`).

    Args:
        images: number of images to compare; 0 switches the callback off.
        keep: largest change of the predictions, in percentage points; by default the solver is not changed.
    """

    def __init__(self, images: int = 1_000, keep: float | None = None) -> None:
        if images < 0:
            raise ValueError(f"images must not be negative, not {images}")
        if keep is not None and (not 0 < keep < 100 or images == 0):
            raise ValueError(f"keep must be between 0 and 100 points, of images more than 0; not {keep} of {images}")
        self.images, self.keep = images, keep
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.certificate: Certificate | None = None
        self.first: Solver | None = None
        self.level = 0
        self.resumed: dict[str, Any] = {}

    @override
    def state_dict(self) -> dict[str, Any]:
        """The solver at the start, and how far it is refined."""
        if self.first is None:
            return {}
        return {"class": type(self.first).__name__, "settings": dict(vars(self.first)), "level": self.level}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first, resumed, self.resumed = None, self.resumed, {}
        blocks = classifier(pl_module).net.ode_blocks
        if self.keep is None or not blocks:
            return
        self.first = blocks[0].solver
        if any(block.solver != self.first for block in blocks):
            raise ValueError("is_ode.keep needs a network whose ODE blocks have the same solver")
        is_resumed = resumed.get("class") == type(self.first).__name__  # else with a new solver, from its level 0
        if is_resumed:
            self.first = type(self.first)(**resumed["settings"])
        self._refine(pl_module, resumed["level"] if is_resumed else 0)

    def _refine(self, pl_module: LightningModule, level: int) -> None:
        """Set the solver of a level in the blocks, and in the config that checkpoints keep."""
        assert self.first is not None
        self.level, solver = level, refined(self.first, level)
        for block in classifier(pl_module).net.ode_blocks:
            block.solver = solver
        config = pl_module.hparams.get("net")
        if isinstance(config, dict) and not name_solver(config, solver):
            raise ValueError(f"is_ode.keep needs a network with an argument solver, not {config}")

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = []
        if self.first is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the level, the same on all processes."""
        assert self.first is not None
        assert self.keep is not None

        def mean(value: float) -> float:
            return float(trainer.strategy.reduce(torch.tensor(value, device=pl_module.device), reduce_op="mean"))

        with isolate_rng(), trainer.precision_plugin.forward_context():
            images = validation_images(trainer, -(-self.images // trainer.world_size))
            net = classifier(pl_module).net
            level, change = next_level(net, images, self.first, self.level, self.keep / 100, mean)
        if level != self.level and trainer.is_global_zero:
            said = f"an accurate solver changes {100 * change:.2g} points of the predictions"
            print(f"{said}: from here on {refined(self.first, level)}", flush=True)
        if (writer := tensorboard(trainer)) is not None and math.isfinite(change):
            writer.add_scalar("ode/keep", 100 * change, max(0, trainer.global_step - 1))
        self._refine(pl_module, level)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        room = self.images - sum(len(labels) for _, labels in self.seen)
        if room > 0 and not trainer.sanity_checking:
            images, labels = batch
            self.seen.append((images[:room], labels[:room]))

    on_test_epoch_start, on_test_batch_end = on_validation_epoch_start, on_validation_batch_end

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._say(trainer, pl_module)

    def _say(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the certificate, print it and write it, on the first process."""
        seen, self.seen = self.seen, []
        if not seen or not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        images, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
        try:
            with trainer.precision_plugin.forward_context():
                self.certificate = certify(classifier(pl_module).net, images, labels)
        except SolverError as error:
            print(f"is it an ODE           no: an accurate solver cannot solve it: {error}", flush=True)
            return
        if self.certificate is None:
            return
        print("\n" + "\n".join(f"{name:<22} {value}" for name, value in self.certificate.rows()), flush=True)
        writer = tensorboard(trainer) if trainer.state.fn == "fit" else None
        if writer is not None:
            for name, value in self.certificate.scalars().items():
                if math.isfinite(value):  # NaN and infinity are no JSON, which TensorBoard's page reads
                    writer.add_scalar(f"ode/{name}", value, max(0, trainer.global_step - 1))

    on_fit_end = on_test_end = _say


def name_solver(config: dict[str, Any], solver: Solver) -> int:
    """Write a solver into a network's config, in place, wherever it takes one; return in how many places."""
    places = 0
    for key, value in config.items():
        if key == "solver":
            path = f"{type(solver).__module__}.{type(solver).__qualname__}"
            config[key], places = {"class_path": path, "init_args": dict(vars(solver))}, places + 1
        elif isinstance(value, dict):
            places += name_solver(value, solver)
    return places
