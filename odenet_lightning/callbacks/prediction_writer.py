"""PredictionWriter: predicted classes as a table and a contact sheet."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from odenet_lightning.callbacks.classifier import class_names, classifier, kind_of
from odenet_lightning.data.picture_files import printable
from odenet_lightning.figures import contact_sheet
from odenet_lightning.trainer import datamodule

PRINTED = 50  # predictions that are printed; the table has all


class PredictionWriter(Callback):
    """Prints predictions, and writes predictions.csv and predictions.png, a contact sheet.

    The table has a row for each picture: file, prediction, confidence (its probability), runner_up and
    runner_up_confidence, and the probabilities of all classes as p(NAME).

    With another data module, images have numbers instead of files, in the order of its loader.

    (Lightning's `BasePredictionWriter` needs each batch's indices from a `DataLoader`, and warns at
    every batch that comes from elsewhere, as this project's do.)
    """

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches = []

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        self.batches.append({key: value.cpu() for key, value in outputs.items()})

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule(trainer)
        folder = Path(trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        probabilities, images = (
            torch.cat([batch[key] for batch in self.batches]) for key in ("probabilities", "images")
        )
        paths = data.predict_paths if data is not None else [Path(str(index)) for index in range(len(images))]
        unreadable = data.unreadable if data is not None else []
        left_out = f", {len(paths) - len(images)} left out" if len(paths) > len(images) else ""
        paths = paths[: len(images)]  # a limit of batches may leave some out
        names = class_names(pl_module, probabilities.shape[1])
        table = Table(paths, probabilities, names)
        table.write(folder / "predictions.csv")
        table.print()
        shown, files = table.best.values[:, 0].tolist(), [path.name for path in paths]
        sheet = contact_sheet(images, files, table.column(0), shown, kind_of(names))
        sheet.savefig(folder / "predictions.png")
        if any(block.solver.couples_images for block in classifier(pl_module).net.ode_blocks):
            print(
                "note: the solver chooses one step size for a whole batch, so confidences may depend on the other "
                "images of the batch"
            )
        for line in unreadable[:PRINTED]:
            print(f"skipped {line}", file=sys.stderr)
        if len(unreadable) > PRINTED:
            print(f"skipped {len(unreadable) - PRINTED:,} more", file=sys.stderr)
        print(f"{len(paths)} pictures classified, {len(unreadable)} skipped{left_out}")
        print(f"predictions:   {folder / 'predictions.csv'}\ncontact sheet: {folder / 'predictions.png'}", flush=True)


class Table:
    """Predictions for N files as rows, from probabilities `[N, K]`."""

    def __init__(self, paths: Sequence[Path], probabilities: Tensor, names: list[str]) -> None:
        self.paths, self.probabilities, self.names = paths, probabilities.double(), names
        self.best = self.probabilities.topk(2, dim=1)

    def column(self, place: int) -> list[str]:
        """The names of the likeliest classes (0), or of the second likeliest (1)."""
        return [self.names[label] for label in self.best.indices[:, place].tolist()]

    def write(self, path: Path) -> None:
        """Write all rows as CSV."""
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            heads = ["file", "prediction", "confidence", "runner_up", "runner_up_confidence"]
            writer.writerow([*heads, *(f"p({name})" for name in self.names)])
            parts = (self.paths, self.column(0), self.column(1), self.best.values.tolist(), self.probabilities.tolist())
            for file_path, first, second, (confidence, other), row in zip(*parts, strict=True):
                best = [first, f"{confidence:.4f}", second, f"{other:.4f}"]
                writer.writerow([str(file_path), *best, *(f"{value:.4f}" for value in row)])

    def print(self) -> None:
        """Print the first rows, aligned."""
        shown = [printable(path.name) for path in self.paths[:PRINTED]]
        first, second = ([printable(name) for name in self.column(place)[:PRINTED]] for place in (0, 1))
        wide, long = max(map(len, shown)), max(map(len, first))
        for name, best, other, (confidence, rest) in zip(shown, first, second, self.best.values.tolist(), strict=False):
            print(f"{name:<{wide}}  {best:<{long}}  {confidence:6.1%}   then {other} {rest:.1%}")
        if len(self.paths) > PRINTED:
            print(f"... and {len(self.paths) - PRINTED:,} more in the table")
