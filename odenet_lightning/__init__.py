"""Neural ODE classifiers in PyTorch Lightning: train, look, swap in your own field or solver."""

from odenet_lightning.block import ODEBlock
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.models import Classifier, ODENet, PaperODENet, PaperResNet, ResNet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.optimizers import MuonWithAdamW

__all__ = [
    "Classifier",
    "ClassifierModule",
    "MNISTDataModule",
    "MuonWithAdamW",
    "ODEBlock",
    "ODENet",
    "PaperODENet",
    "PaperResNet",
    "ResNet",
]
