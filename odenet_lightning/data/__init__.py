"""Digits: where they come from, how they are split, and batches of them."""

from odenet_lightning.data.batches import EpochOrder, EvaluationBatches, TrainingBatches
from odenet_lightning.data.datasets import DataError, Digits, Source
from odenet_lightning.data.image_folder import FolderError, load_folder
from odenet_lightning.data.module import MNISTDataModule, normalise
from odenet_lightning.data.sample import load_sample

__all__ = [
    "DataError",
    "Digits",
    "EpochOrder",
    "EvaluationBatches",
    "FolderError",
    "MNISTDataModule",
    "Source",
    "TrainingBatches",
    "load_folder",
    "load_sample",
    "normalise",
]
