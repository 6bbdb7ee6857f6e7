"""The type of the module that these callbacks work with."""

from lightning import LightningModule

from odenet_lightning.module import ClassifierModule


def classifier(module: LightningModule) -> ClassifierModule:
    """The module as a `ClassifierModule`: these callbacks work with no other."""
    assert isinstance(module, ClassifierModule)
    return module
