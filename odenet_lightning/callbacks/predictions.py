"""PredictionWriter: predicted digits as a table and a contact sheet."""

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from odenet_lightning.figures import contact_sheet
from odenet_lightning.trainer import datamodule


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
