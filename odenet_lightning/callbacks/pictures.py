"""Pictures: mistakes, confusion matrix and feature maps, drawn after validation."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from typing_extensions import override

from odenet_lightning.callbacks.classifier import class_names, classifier, kind_of
from odenet_lightning.figures import LONGEST, draw_confusion, draw_digits, draw_feature_maps, release, shorten
from odenet_lightning.trainer import tensorboard

MISTAKES = 32  # misclassified digits drawn
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)


def add_figure(trainer: Trainer, tag: str, figure: Figure) -> None:
    """Write a figure to the run's event file, and release it."""
    writer = tensorboard(trainer)
    if writer is not None:
        # steps are counted from 0 in curves: the one just taken
        writer.add_figure(tag, figure, max(0, trainer.global_step - 1), close=False)
    release(figure)


class Pictures(Callback):
    """Draws, after validation: misclassified digits, the confusion matrix, and a digit's feature maps over t.

    Args:
        every_n_epochs: how often, in epochs, and after the last one besides; 0 for never. Drawing takes about as long
            as an epoch of the built-in sample.
    """

    def __init__(self, every_n_epochs: int = 4) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs must not be negative, not {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.confusion: MulticlassConfusionMatrix | None = None
        self.mistakes: list[tuple[Tensor, int, int]] = []
        self.example: Tensor | None = None

    def _is_on(self, trainer: Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.every_n_epochs == 0:
            return False
        done = trainer.current_epoch + 1
        is_last = done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        return is_last or done % self.every_n_epochs == 0

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.confusion, self.mistakes, self.example = None, [], None

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if not self._is_on(trainer):
            return
        images, labels = batch
        predicted, classes = outputs["logits"].argmax(1), outputs["logits"].shape[1]
        if self.confusion is None:
            self.confusion = MulticlassConfusionMatrix(classes).to(pl_module.device)
        self.confusion.update(predicted, labels)
        self.example = images[:1] if self.example is None else self.example
        for index in (predicted != labels).nonzero().flatten()[: MISTAKES - len(self.mistakes)]:
            self.mistakes.append((images[index].cpu(), int(labels[index]), int(predicted[index])))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_on(trainer) or self.confusion is None:
            return
        counts = self.confusion.compute()  # on every process: it gathers
        if tensorboard(trainer) is None or self.example is None:
            return
        wrong = int(counts.sum() - counts.diagonal().sum())
        names = [shorten(name, 2 * LONGEST) for name in class_names(pl_module, len(counts))]
        add_figure(trainer, "val/confusion", draw_confusion(counts, names))
        images = torch.stack([image for image, _, _ in self.mistakes]) if self.mistakes else self.example[:0]
        taken = " taken for " if max(map(len, names)) < 5 else "\ntaken for\n"
        titles = [f"{names[true]}{taken}{names[predicted]}" for _, true, predicted in self.mistakes]
        shown = "digits" if kind_of(names) == "digit" else "images"
        title = f"{wrong} of {int(counts.sum())} validation {shown} wrong"
        title += f", {len(images)} of them" if wrong > len(images) else ""
        title += f": true {kind_of(names)}, taken for another" if wrong else ""
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
            add_figure(trainer, tag, draw_feature_maps(image[0], states, TIMES))
