"""PredictionWriter: predicted digits as a table and a contact sheet."""

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from odenet_lightning.callbacks.classifier import classifier
from odenet_lightning.figures import contact_sheet
from odenet_lightning.trainer import datamodule


class PredictionWriter(Callback):
    """Writes predictions.csv (file, digit, confidence) and predictions.png, a contact sheet.

    Images of another data module have numbers in the place of files, in the order of its loader.

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
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append({key: value.cpu() for key, value in outputs.items()})

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = datamodule(trainer)
        folder = Path(trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        digits, confidences, images = (
            torch.cat([batch[key] for batch in self.batches]) for key in ("digit", "confidence", "images")
        )
        paths = data.predict_paths if data is not None else [Path(str(index)) for index in range(len(digits))]
        unreadable = data.unreadable if data is not None else []
        names = [path.name for path in paths[: len(digits)]]  # a limit of batches may leave some out
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "digit", "confidence"])
            for path, digit, confidence in zip(paths, digits.tolist(), confidences.tolist(), strict=False):
                writer.writerow([str(path), digit, f"{confidence:.4f}"])
        contact_sheet(images, names, digits.tolist(), confidences.tolist()).savefig(folder / "predictions.png")
        if any(block.solver.couples_images for block in classifier(pl_module).net.ode_blocks):
            print(
                "note: the solver chooses one step size for a whole batch, so confidences may depend on the other "
                "images of the batch"
            )
        for line in unreadable:
            print(f"skipped {line}", file=sys.stderr)
        left_out = f", {len(paths) - len(names)} left out" if len(paths) > len(names) else ""
        print(f"{len(names)} pictures classified, {len(unreadable)} skipped{left_out}")
        print(f"predictions:   {folder / 'predictions.csv'}\ncontact sheet: {folder / 'predictions.png'}", flush=True)
