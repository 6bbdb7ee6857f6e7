"""Neural ODE classifiers in PyTorch Lightning: train, look, swap in your own field or solver."""

from odenet_lightning.block import ODEBlock
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.models import Classifier, ODENet, PaperODENet, PaperResNet, ResNet
from odenet_lightning.module import ClassifierModule

__all__ = [
    "Classifier",
    "ClassifierModule",
    "MNISTDataModule",
    "ODEBlock",
    "ODENet",
    "PaperODENet",
    "PaperResNet",
    "ResNet",
]
