"""Neural ODE classifiers in PyTorch Lightning: train, look, swap in your own field or solver."""

from importlib.metadata import PackageNotFoundError, version

from odenet_lightning.block import ODEBlock
from odenet_lightning.data import FolderDataModule, MNISTDataModule
from odenet_lightning.models import Classifier, ODENet, PaperODENet, PaperResNet, ResNet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.optimizers import MuonWithAdamW

try:
    __version__ = version("odenet_lightning")
except PackageNotFoundError:  # source that is not installed
    __version__ = "unknown"

__all__ = [
    "Classifier",
    "ClassifierModule",
    "FolderDataModule",
    "MNISTDataModule",
    "MuonWithAdamW",
    "ODEBlock",
    "ODENet",
    "PaperODENet",
    "PaperResNet",
    "ResNet",
    "__version__",
]
