"""Neural ODE classifiers in PyTorch Lightning: train, look, swap in your own field or solver."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odenet_lightning.block import ODEBlock
    from odenet_lightning.data import FolderDataModule, MNISTDataModule
    from odenet_lightning.models import Classifier, ODENet, PaperODENet, PaperResNet, ResNet
    from odenet_lightning.module import ClassifierModule
    from odenet_lightning.optimizers import MuonWithAdamW

try:
    __version__ = version("odenet_lightning")
except PackageNotFoundError:  # source that is not installed
    __version__ = "unknown"

# imported when asked for: torch and Lightning take seconds, in which the command line already has something to say
HOMES = {
    "ODEBlock": "block",
    "FolderDataModule": "data",
    "MNISTDataModule": "data",
    "Classifier": "models",
    "ODENet": "models",
    "PaperODENet": "models",
    "PaperResNet": "models",
    "ResNet": "models",
    "ClassifierModule": "module",
    "MuonWithAdamW": "optimizers",
}

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


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
