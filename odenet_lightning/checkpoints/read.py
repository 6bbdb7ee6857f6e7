"""Checkpoints are opened as data only, and their networks and optimisers made from the plain config that they keep."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser
from torch.optim import Optimizer

from odenet_lightning.checkpoints.shipped import checkpoint_file, shipped_names
from odenet_lightning.checkpoints.trust import RefusedCheckpoint, refuse_foreign, texts_of_module
from odenet_lightning.data import FolderDataModule, ImageDataModule, MNISTDataModule, Source
from odenet_lightning.models import Classifier
from odenet_lightning.regularizers import Regularizer

TRAIN_ONE = "train one with 'python -m odenet_lightning fit'"

# settings of the data that a checkpoint brings along: another split or set would be a trap; root is this machine's
KEPT_DATA = ("batch_size", "val_size", "split_seed", "augment", "image_size", "colour", "val_share", "test_share")
DATA_CLASSES = (MNISTDataModule, FolderDataModule)


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint as data, refusing one that carries code.

    Args:
        path: the file, or the name of a trained network that comes with the package.
        map_location: where its tensors go.

    Raises:
        RefusedCheckpoint: no such file, not a checkpoint of this project, or one with more than plain data in it.
    """
    file = checkpoint_file(path)
    if not file.is_file():
        with_package = ", ".join(shipped_names())
        raise RefusedCheckpoint(f"there is no checkpoint {path} (trained networks that come along: {with_package})")
    try:
        checkpoint = torch.load(file, weights_only=True, map_location=map_location)
    except Exception as e:
        if re.search(r"unsupported (global|class)", str(e), re.IGNORECASE):
            raise RefusedCheckpoint(
                f"{path} is refused: it holds more than plain data, and loading it could run code"
            ) from e
        raise RefusedCheckpoint(
            f"{path} is not a checkpoint that can be read (truncated, or another kind of file)"
        ) from e
    data_parts = ("datamodule_hyper_parameters", *(kind.__qualname__ for kind in DATA_CLASSES))
    parts = ("state_dict", "hyper_parameters", *data_parts)
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
        or not all(isinstance(checkpoint.get(part, {}), dict) for part in parts)
    ):
        raise RefusedCheckpoint(f"{path} is not a Lightning checkpoint: {TRAIN_ONE}")
    return checkpoint


def rebuild(
    path: str | Path, checkpoint: dict[str, Any], trusted: str | None, remedy: str, only: Iterable[str] | None = None
) -> dict[str, Any]:
    """The network, optimiser and regularizer of a checkpoint, as its config says: none has the weights yet.

    Args:
        path: the checkpoint's, to be named in errors.
        checkpoint: its content.
        trusted: a module or package whose classes may be imported.
        remedy: how the user can trust one.
        only: which of `net`, `optimizer` and `regularizer` are wanted; by default all.

    Returns:
        `net`, a `Classifier`, `optimizer`, which makes one from parameters, and `regularizer`; what the checkpoint
        does not describe is left out.

    Raises:
        RefusedCheckpoint: a part is of a class that is neither known nor trusted.
    """
    kinds = {"net": Classifier, "optimizer": Callable[[Iterable], Optimizer], "regularizer": Regularizer}
    kept = checkpoint.get("hyper_parameters", {})
    wanted = kinds if only is None else only
    config = {key: kept[key] for key in wanted if isinstance(kept.get(key), dict)}
    refuse_foreign(config, path, texts_of_module(config, trusted), remedy)
    parser = ArgumentParser(exit_on_error=False)
    for key in config:
        parser.add_argument(f"--{key}", type=kinds[key])
    try:
        made = parser.instantiate_classes(parser.parse_object(config))
        return {key: made[key] for key in config}
    except Exception as e:
        raise RefusedCheckpoint(f"{path} holds a network or an optimiser that cannot be made again: {e}") from e


def kept_model(hparams: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model among its hyperparameters, without Lightning's own notes."""
    return {key: value for key, value in hparams.items() if not str(key).startswith("_")}


def data_class(checkpoint: dict[str, Any]) -> type[ImageDataModule] | None:
    """Which of this project's data modules a checkpoint was trained with; None if with another."""
    path = checkpoint.get("datamodule_hyper_parameters", {}).get("_class_path")
    for kind in DATA_CLASSES:
        is_own = path is None or re.fullmatch(rf"odenet_lightning\.([a-z_.]+\.)?{kind.__qualname__}", str(path))
        if is_own and kind.__qualname__ in checkpoint:
            return kind
    return None


def kept_data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings of the data that a checkpoint was trained with, and the set that it really used."""
    hparams = checkpoint.get("datamodule_hyper_parameters", {})
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in hparams.items()}
    kept_ones = {key: plain[key] for key in KEPT_DATA if isinstance(plain.get(key), bool | int | float | list | dict)}
    used = checkpoint.get(MNISTDataModule.__qualname__, {}).get("digits_used")
    return kept_ones | ({"source": used} if used in get_args(Source) else {})
