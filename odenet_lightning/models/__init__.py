"""Image classifiers: stem -> trunk -> head. The networks differ mainly in the trunk."""

from odenet_lightning.models.augmented import AugmentedODENet
from odenet_lightning.models.base import (
    CLASSES,
    IMAGE_SHAPE,
    Classifier,
    Composed,
    ImageShape,
    OneBlock,
    refuse_no_logits,
)
from odenet_lightning.models.paper import PaperODENet, PaperResNet
from odenet_lightning.models.post import Head, ODENet, ResidualBlock, ResNet, Stem
from odenet_lightning.models.pyramid import PyramidODENet

__all__ = [
    "AugmentedODENet",
    "CLASSES",
    "Classifier",
    "Composed",
    "Head",
    "IMAGE_SHAPE",
    "ImageShape",
    "ODENet",
    "OneBlock",
    "PaperODENet",
    "PaperResNet",
    "PyramidODENet",
    "ResNet",
    "ResidualBlock",
    "Stem",
    "refuse_no_logits",
]
