"""PredictionWriter: predicted digits as a table and a contact sheet."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from odenet_lightning.figures import contact_sheet
from odenet_lightning.trainer import datamodule


class PredictionWriter(BasePredictionWriter):
    """Writes predictions.csv (file, digit, confidence) and predictions.png, a contact sheet."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        data = datamodule(trainer)
        if data is None:
            return
        folder = Path(trainer.log_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        digits, confidences, images = (
            torch.cat([batch[key].cpu() for batch in predictions]) for key in ("digit", "confidence", "images")
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
