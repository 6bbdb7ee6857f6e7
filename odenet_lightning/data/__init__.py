"""Images: where they come from, how they are split, and batches of them."""

from odenet_lightning.data.base import ImageDataModule, normalise
from odenet_lightning.data.batches import EpochOrder, EvaluationBatches, TrainingBatches
from odenet_lightning.data.datasets import Source
from odenet_lightning.data.digits import DataError, Digits
from odenet_lightning.data.folders import FolderDataModule
from odenet_lightning.data.module import MNISTDataModule
from odenet_lightning.data.picture_files import FolderError, load_pictures
from odenet_lightning.data.sample import load_sample

__all__ = [
    "DataError",
    "Digits",
    "EpochOrder",
    "EvaluationBatches",
    "FolderDataModule",
    "FolderError",
    "ImageDataModule",
    "MNISTDataModule",
    "Source",
    "TrainingBatches",
    "load_pictures",
    "load_sample",
    "normalise",
]
