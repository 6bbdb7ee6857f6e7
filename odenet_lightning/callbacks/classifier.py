"""The module that these callbacks work with, and the names of its classes."""

from collections.abc import Sequence

from lightning import LightningModule

from odenet_lightning.module import ClassifierModule


def classifier(module: LightningModule) -> ClassifierModule:
    """The module as a `ClassifierModule`: these callbacks work with no other."""
    assert isinstance(module, ClassifierModule)
    return module


def kind_of(names: Sequence[str]) -> str:
    """What classes of these names are: digits, or else classes."""
    return "digit" if all(len(name) == 1 and name.isdecimal() for name in names) else "class"


def class_names(module: LightningModule, count: int) -> list[str]:
    """The names of a network's K classes; their numbers where it does not know them."""
    names = classifier(module).class_names
    return names if names is not None and len(names) == count else [str(label) for label in range(count)]
