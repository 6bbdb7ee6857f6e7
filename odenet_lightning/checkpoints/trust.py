"""Which settings of a checkpoint may be turned into objects: a class is imported only if it is known or trusted."""

import re
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from odenet_lightning.augment import Augmentation
from odenet_lightning.gradients import Gradient
from odenet_lightning.optimizers import MuonWithAdamW
from odenet_lightning.regularizers import Regularizer
from odenet_lightning.solvers import Solver

# MuonWithAdamW beside its base class, so that its module is there when a checkpoint names it
KINDS = (nn.Module, Optimizer, MuonWithAdamW, Solver, Gradient, Regularizer, Augmentation)


class RefusedCheckpoint(RuntimeError):
    """A checkpoint that cannot be used: missing, not readable, or with parts that could run code."""


def foreign_texts(settings: Any, trusted: Set[str] = frozenset()) -> list[str]:
    """Texts in a config that might make the parser import or call something that is neither known nor trusted.

    The parser follows class paths, to functions, too, and reads a text as YAML or as the name of a file with a class
    path in it. So only these pass: plain words that name no file, keys that are names, and class paths of networks,
    optimisers, regularizers and their parts in this project and torch.
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
    return (
        isinstance(found, type)
        and issubclass(found, KINDS)
        and found.__module__.startswith(("odenet_lightning.", "torch.nn.", "torch.optim."))
    )


def refuse_foreign(settings: Any, path: str | Path, trusted: Set[str], remedy: str) -> None:
    """Refuse settings of a checkpoint that would import something that is neither known nor trusted.

    Args:
        settings: plain values, at any depth.
        path: the checkpoint, to be named.
        trusted: texts that may be imported, as the user gave them.
        remedy: how the user can trust more.
    """
    for text in foreign_texts(settings, trusted):
        raise RefusedCheckpoint(
            f"{path} names {text[:80]!r}, and importing that would run its code: if you trust it, {remedy}"
        )


def texts(tree: Any) -> set[str]:
    """All texts in a config, at any depth."""
    if isinstance(tree, dict):
        return texts(list(tree.values()))
    if isinstance(tree, list | tuple):
        return set().union(*(texts(value) for value in tree))
    return {tree} if isinstance(tree, str) else set()


def texts_of_module(tree: Any, module: str | None) -> set[str]:
    """The class paths in a config that lie in a module or package, which may be trusted by that name."""
    own = rf"{re.escape(module)}(\.[A-Za-z_]\w*)*" if module else ""
    return {text for text in texts(tree) if re.fullmatch(own, text)}
