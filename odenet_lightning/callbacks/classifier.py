"""What these callbacks may expect of the module that they watch."""

from lightning import LightningModule

from odenet_lightning.module import ClassifierModule


def classifier(module: LightningModule) -> ClassifierModule:
    """The module as what it is; these callbacks serve no other."""
    assert isinstance(module, ClassifierModule)
    return module
