"""Opening checkpoints as data, and what a checkpoint may name without running code."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from odenet_lightning.augment import Augmentation
from odenet_lightning.cli.errors import PROGRAM, UsageError
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.gradients import Gradient
from odenet_lightning.solvers import Solver


def load_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint as data, refusing one that carries code.

    Raises:
        UsageError: no such file, not a checkpoint of this project, or one with more than plain data in it.
    """
    if not Path(path).is_file():
        raise UsageError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as e:
        if re.search(r"unsupported (global|class)", str(e), re.IGNORECASE):
            raise UsageError(f"{path} is refused: it holds more than plain data, and loading it could run code") from e
        raise UsageError(f"{path} is not a checkpoint that can be read (truncated, or another kind of file)") from e
    parts = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters", MNISTDataModule.__qualname__)
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys()
        or not all(isinstance(checkpoint.get(part, {}), dict) for part in parts)
    ):
        raise UsageError(f"{path} is not a Lightning checkpoint: train one with '{PROGRAM} fit'")
    return checkpoint


def foreign_texts(settings: Any, trusted: set[str]) -> list[str]:
    """What in a config might have the parser import or call something that is neither known nor trusted.

    The parser follows class paths, to functions, too, and reads a text as YAML or as the name of a file with a class
    path in it. So only plain words pass that name no file, keys that are names, and the class paths of
    networks' parts and optimisers of this project and torch.
    """
    if isinstance(settings, dict):
        path = settings.get("class_path")
        known = isinstance(path, str) and (path in trusted or is_known_class(path))
        rest = {key: value for key, value in settings.items() if key != "class_path" or not known}
        keys = [str(key) for key in rest if not (isinstance(key, str) and key.isidentifier())]
        free = ["dict_kwargs"] if "dict_kwargs" in rest and path not in trusted else []  # are passed on unseen
        return sorted({*keys, *free, *foreign_texts(list(rest.values()), trusted)})
    if isinstance(settings, list | tuple):
        return sorted({text for value in settings for text in foreign_texts(value, trusted)})
    if isinstance(settings, str):
        plain = re.fullmatch(r"[\w+-]*", settings) and not Path(settings).is_file()
        return [] if plain or settings in trusted else [settings]
    return [] if settings is None or isinstance(settings, bool | int | float) else [type(settings).__name__]


def is_known_class(path: str) -> bool:
    """Whether a class path names a part of a network, an optimiser or an augmentation, of this project or of torch.

    What a module has imported from elsewhere is no part of it, nor are functions.
    """
    module, _, name = path.rpartition(".")
    if not re.fullmatch(r"(odenet_lightning|torch\.(nn|optim))(\.[A-Za-z_]\w*)*", module) or module not in sys.modules:
        return False  # nothing is imported to find out
    found = getattr(sys.modules[module], name, None)
    kinds = (nn.Module, torch.optim.Optimizer, Solver, Gradient, Augmentation)
    return (
        isinstance(found, type)
        and issubclass(found, kinds)
        and found.__module__.startswith(("odenet_lightning.", "torch.nn.", "torch.optim."))
    )


def refuse_foreign_classes(settings: dict[str, Any], path: str, trusted: set[str]) -> None:
    """Refuse to import what a checkpoint names, unless the user names it, too.

    Args:
        settings: what the checkpoint would have the parser read.
        path: the checkpoint's.
        trusted: texts that the user gave, as flags or in configs.

    Raises:
        UsageError: there is a foreign text that the user did not give.
    """
    for text in foreign_texts(settings, trusted):
        raise UsageError(
            f"{path} names {text[:80]!r}, and importing that would run its code: "
            "if you trust it, give the config that it was trained with, too (--config FILE)"
        )
