"""Class names: whether those of the data are those that the network was trained on."""

from collections.abc import Sequence

from lightning import Trainer

from odenet_lightning.data import DataError, FolderDataModule
from odenet_lightning.trainer import datamodule


def agreed_class_names(trainer: Trainer, known: Sequence[str] | None) -> list[str] | None:
    """The network's class names: those it was trained on, or those of this project's data if it has none yet.

    Raises:
        DataError: the data have other classes.
    """
    data = datamodule(trainer)
    if data is None:
        return None if known is None else list(known)
    names = list(data.class_names)
    if known is None:
        return names
    if len(known) != len(names) or (isinstance(data, FolderDataModule) and list(known) != names):
        missing, unknown = [name for name in known if name not in names], [name for name in names if name not in known]
        raise DataError(
            f"the network was trained on {len(known)} classes, the data have {len(names)}; missing there: "
            f"{', '.join(missing) or 'none'}; unknown to the network: {', '.join(unknown) or 'none'}"
        )
    return list(known)
