"""What is counted, printed and drawn while a network trains. Callbacks gather; figures.py draws."""

import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_warn
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from odenet_lightning.block import SolveRecord
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.figures import contact_sheet, draw_confusion, draw_digits, draw_feature_maps, release
from odenet_lightning.models import CLASSES
from odenet_lightning.module import ClassifierModule, is_written
from odenet_lightning.solvers import Solver

MISTAKES = 32  # misclassified digits drawn
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """The run's event file, on the process that writes it."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment
    return None


def datamodule(trainer: Trainer) -> MNISTDataModule | None:
    """The run's data module, where it is this project's."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, MNISTDataModule) else None


def classifier(module: LightningModule) -> ClassifierModule:
    """The module as what it is; these callbacks serve no other."""
    assert isinstance(module, ClassifierModule)
    return module


def add_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Put a figure into the run's event file; it is used up."""
    writer = tensorboard(trainer)
    if writer is not None:
        # steps are counted from 0 in curves: the one just taken
        writer.add_figure(tag, figure, max(0, trainer.global_step - 1), close=False)
    release(figure)


class EvaluationCounts(Callback):
    """Logs evaluations of the field (NFE), summed over a network's ODE blocks.

    `nfe/forward`, `nfe/backward`: in training, averaged over the steps since they were last
    written; `nfe/backward` only where the gradient method evaluates the field on the way back.
    `nfe/val_forward`: in validation, averaged over the batches. The records of every batch are
    dropped after it, so that no phase's count leaks into another's. `solver/accepted`,
    `solver/rejected`, `solver/smallest_step` and `solver/last_step` (in units of t) are of the last
    step, over all blocks.

    Also keeps a budget: warns once where a step's evaluations exceed half of `budget`, and ends the
    run, checkpoints kept, where they exceed all of it. Dynamics that have become so hard are not
    learning any more; `ODEBlock`'s own `max_nfe` stops a single solve.

    Args:
        budget: forward evaluations a training step may cost.
    """

    def __init__(self, budget: int = 1_000) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1, not {budget!r}")
        self.budget = budget
        self.warned = self.exceeded = False
        self.forward: list[int] = []
        self.backward: list[int] = []
        self.validation = MeanMetric()

    def state_dict(self) -> dict[str, Any]:
        """The counts since they were last written, so that a resumed run averages over the same steps."""
        return {"forward": self.forward, "backward": self.backward}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.forward, self.backward = list(state_dict["forward"]), list(state_dict["backward"])

    @staticmethod
    def _collect(pl_module: LightningModule) -> list[SolveRecord]:
        blocks = classifier(pl_module).net.ode_blocks
        records = [record for block in blocks for record in block.solves]
        for block in blocks:
            block.forget_solves()
        return records

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start each batch's count at zero."""
        self._collect(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch and log the average since the last written one."""
        records = self._collect(pl_module)
        if not records:
            return
        self.forward.append(sum(record.forward.evaluations for record in records))
        self._keep_budget(trainer, self.forward[-1])
        backward = [record.backward.evaluations for record in records if record.backward is not None]
        if backward:
            self.backward.append(sum(backward))
        if not is_written(trainer):
            return
        pl_module.log("nfe/forward", sum(self.forward) / len(self.forward), prog_bar=True)
        if self.backward:
            pl_module.log("nfe/backward", sum(self.backward) / len(self.backward), prog_bar=True)
        self.forward, self.backward = [], []
        stats = [record.forward for record in records]
        pl_module.log("solver/accepted", float(sum(s.accepted for s in stats)))
        pl_module.log("solver/rejected", float(sum(s.rejected for s in stats)))
        pl_module.log("solver/smallest_step", min(s.smallest_step for s in stats))
        pl_module.log("solver/last_step", stats[-1].last_step)

    def _keep_budget(self, trainer: Trainer, evaluations: int) -> None:
        if self.budget / 2 < evaluations <= self.budget and not self.warned:
            self.warned = True
            rank_zero_warn(f"a step cost {evaluations} evaluations of the field; the run ends beyond {self.budget}")
        self.exceeded = self.exceeded or evaluations > self.budget
        # every process must end together, whichever of them has the hard batch; asking at every step costs several
        # processes some of their speed
        if trainer.world_size > 1 and not is_written(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(self.exceeded, all=False):
            rank_zero_warn(
                f"a step cost more evaluations than the budget of {self.budget} ({evaluations} here): ending the run; "
                "try a smaller learning rate, more weight decay, looser tolerances or a fixed step"
            )
            trainer.should_stop = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start each batch's count at zero."""
        self._collect(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        records = self._collect(pl_module)
        if records:
            self.validation.update(sum(record.forward.evaluations for record in records))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self.validation.reset()
        self.validation.to(pl_module.device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the average over the batches of all processes, which may not have the same number of them."""
        if classifier(pl_module).net.ode_blocks:
            pl_module.log("nfe/val_forward", self.validation.compute(), batch_size=1, sync_dist=True)


class CoarseStart(Callback):
    """Trains the first epochs with a coarser, cheaper solver; validation always uses the network's own.

    Early weights are far from where they end, so an accurate solve of their ODE is wasted; the last
    epochs then fit the weights to the accurate one. The multilevel idea of Chang et al. 2018
    (arXiv:1710.10348), in the number of steps only.

    Args:
        solver: the coarse solver, for all ODE blocks.
        epochs: epochs to train with it; 5.5 ends in the middle of the sixth.
    """

    def __init__(self, solver: Solver, epochs: float) -> None:
        if not 0 <= epochs < math.inf:
            raise ValueError(f"epochs must not be negative, and finite, not {epochs!r}")
        self.solver, self.epochs = solver, epochs
        self.own: list[Solver] = []

    def _restore(self, pl_module: LightningModule) -> None:
        for block, solver in zip(classifier(pl_module).net.ode_blocks, self.own, strict=False):
            block.solver = solver
        self.own = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Coarse or not, by the place in the run; so a run resumed anywhere goes on as it was."""
        done = trainer.current_epoch + batch_idx / trainer.num_training_batches
        if done >= self.epochs:
            self._restore(pl_module)
        elif not self.own:
            blocks = classifier(pl_module).net.ode_blocks
            self.own = [block.solver for block in blocks]
            for block in blocks:
                block.solver = self.solver

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate with the network's own solver."""
        self._restore(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was given."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._restore(pl_module)


class Throughput(Callback):
    """Logs `perf/images_per_second`: images trained on, over all processes.

    All of training's time counts, loading and augmenting too; validation's does not.
    """

    def __init__(self) -> None:
        self._restart()
        self.validation_began = 0.0

    def _restart(self) -> None:
        self.images, self.idle, self.started = 0, 0.0, time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a run resumed within an epoch has no epoch's start."""
        self._restart()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        self.validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self.idle += time.perf_counter() - self.validation_began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate since it was last written."""
        self.images += len(batch[0]) * trainer.world_size
        if is_written(trainer):
            seconds = time.perf_counter() - self.started - self.idle
            pl_module.log("perf/images_per_second", self.images / seconds)
            self._restart()


class EpochLines(Callback):
    """A plain line an epoch, for logs and pipes, where a progress bar would be noise."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's figures."""
        train_acc = classifier(pl_module).train_acc.compute()  # on every process: it gathers
        if not trainer.is_global_zero:
            return
        values = {**trainer.callback_metrics, "train/acc": train_acc}
        shown = [f"epoch {trainer.current_epoch + 1}", f"step {trainer.global_step}"]
        for name, label, style in (
            ("train/loss", "loss", "{:.3f}"),
            ("train/acc", "train", "{:.2%}"),
            ("val/acc", "val", "{:.2%}"),
            ("nfe/forward", "NFE forward", "{:.1f}"),
            ("nfe/backward", "backward", "{:.1f}"),
            ("perf/images_per_second", "images/s", "{:.0f}"),
        ):
            if name in values:
                shown.append(f"{label} {style.format(float(values[name]))}")
        print("  ".join(shown), flush=True)


class EventFile(Callback):
    """Keeps TensorBoard's event file complete: hyperparameters in, no step twice.

    A run that goes on in the same folder (a requeued SLURM job) tells TensorBoard to forget
    what was written after its checkpoint, since those steps are taken again.
    """

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
        values = {**flatten(dict(pl_module.hparams)), "num_params": classifier(pl_module).num_params}
        if data is not None:
            values |= flatten({"data": dict(data.hparams)}) | {"data.digits_used": data.digits_used}
        values |= {"precision": str(trainer.precision), "processes": trainer.world_size}
        # the metrics' values come from the curves of the same names; the zeros are written nowhere
        experiment, session, _ = hparams_summary(values, {"val/acc": 0.0, "val/loss": 0.0})
        for summary in (experiment, session):
            file.add_summary(summary)


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


class Pictures(Callback):
    """Draws, after validation: misclassified digits, the confusion matrix, and a digit's way through the ODE.

    Args:
        every_n_epochs: how often; 0 never.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs must not be negative, not {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.confusion = MulticlassConfusionMatrix(CLASSES)
        self.mistakes: list[tuple[Tensor, int, int]] = []
        self.example: Tensor | None = None

    def _is_on(self, trainer: Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.every_n_epochs == 0:
            return False
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self.confusion.reset()
        self.confusion.to(pl_module.device)
        self.mistakes, self.example = [], None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Gather what is drawn."""
        if not self._is_on(trainer):
            return
        images, labels = batch
        predicted = outputs["logits"].argmax(1)
        self.confusion.update(predicted, labels)
        self.example = images[:1] if self.example is None else self.example
        for index in (predicted != labels).nonzero().flatten()[: MISTAKES - len(self.mistakes)]:
            self.mistakes.append((images[index, 0].cpu(), int(labels[index]), int(predicted[index])))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if not self._is_on(trainer):
            return
        counts = self.confusion.compute()  # on every process: it gathers
        if tensorboard(trainer) is None or self.example is None:
            return
        wrong = int(counts.sum() - counts.diagonal().sum())
        data = datamodule(trainer)
        names = data.class_names if data is not None else [str(label) for label in range(len(counts))]
        add_figure(trainer, "val/confusion", draw_confusion(counts, names))
        images = torch.stack([image for image, _, _ in self.mistakes]) if self.mistakes else torch.zeros(0, 28, 28)
        taken = " taken for " if max(map(len, names)) < 5 else "\nfor "
        titles = [f"{names[true]}{taken}{names[predicted]}" for _, true, predicted in self.mistakes]
        title = f"{wrong} of {int(counts.sum())} validation images wrong"
        if wrong > len(images):
            title += f", {len(images)} of them:"
        add_figure(trainer, "val/misclassified", draw_digits(images, titles, title))
        self._draw_flow(trainer, pl_module, self.example)

    @torch.no_grad()
    def _draw_flow(self, trainer: Trainer, pl_module: LightningModule, image: Tensor) -> None:
        net = classifier(pl_module).net
        for index, block in enumerate(net.ode_blocks):
            inputs: list[Tensor] = []

            def keep(_: nn.Module, args: tuple[Tensor, ...], kept: list[Tensor] = inputs) -> None:
                kept.append(args[0])

            handle = block.register_forward_pre_hook(keep)
            with trainer.precision_plugin.forward_context():
                net(image)
                handle.remove()
                states = block.trajectory(inputs[0], TIMES)[:, 0]
            tag = "val/feature_maps" if index == 0 else f"val/feature_maps_block_{index + 1}"
            add_figure(trainer, tag, draw_feature_maps(image[0, 0], states, TIMES))


class TestReport(Callback):
    """Prints the accuracy on the test digits and the time it took."""

    __test__ = False  # not for pytest

    def __init__(self) -> None:
        self.started, self.count = 0.0, 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()
        self.count = 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the digits that were seen."""
        self.count += len(batch[1])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        seconds = time.perf_counter() - self.started
        data = datamodule(trainer)
        used = f" of {data.digits_used}" if data is not None else ""
        count = int(trainer.strategy.reduce(torch.tensor(self.count, device=pl_module.device), reduce_op="sum"))
        if trainer.is_global_zero:
            accuracy = float(trainer.callback_metrics["test/acc"])
            print(f"Accuracy on {count:,} test images{used}: {accuracy:.2%} (in {seconds:.2f} seconds)", flush=True)


class PredictionWriter(Callback):
    """Writes predictions.csv (file, digit, confidence) and predictions.png, a contact sheet."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self.rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's predictions."""
        self.rows.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files into the run's folder and say where they are."""
        data = datamodule(trainer)
        if data is None:
            return
        folder = Path(trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        digits, confidences, images = (
            torch.cat([row[k] for row in self.rows]) for k in ("digit", "confidence", "images")
        )
        names = [path.name for path in data.predict_paths]
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "digit", "confidence"])
            for path, digit, confidence in zip(data.predict_paths, digits.tolist(), confidences.tolist(), strict=True):
                writer.writerow([str(path), digit, f"{confidence:.4f}"])
        contact_sheet(images, names, digits.tolist(), confidences.tolist()).savefig(folder / "predictions.png")
        for line in data.unreadable:
            print(f"skipped {line}", file=sys.stderr)
        print(f"{len(names)} pictures read, {len(data.unreadable)} skipped")
        print(f"predictions:   {folder / 'predictions.csv'}\ncontact sheet: {folder / 'predictions.png'}", flush=True)
