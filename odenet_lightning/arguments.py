"""What a command line says before it is parsed: its configs, its checkpoint, and what that may bring along."""

import re
import sys
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from torch import nn

from odenet_lightning.augment import Augmentation
from odenet_lightning.data import MNISTDataModule, Source
from odenet_lightning.gradients import Gradient
from odenet_lightning.solvers import Solver

PROGRAM = "python -m odenet_lightning"

# settings of the data that a checkpoint brings along: another split or set would be a trap; root is this machine's
KEPT_DATA = ("batch_size", "val_size", "split_seed", "augment")


class UsageError(RuntimeError):
    """The command line cannot be understood."""


def checkpoint_path(args: list[str]) -> str | None:
    """The value of ckpt_path, where it names a file rather than one of Lightning's words (best, last, ...)."""
    found = None
    for index, arg in enumerate(args):
        if arg == "--ckpt_path" and index + 1 < len(args):
            found = args[index + 1]
        elif arg.startswith("--ckpt_path="):
            found = arg.removeprefix("--ckpt_path=")
        elif arg in ("--config", "-c") or arg.startswith("--config="):
            for config in config_files(args[index : index + 2]):
                tree = read_yaml(config)
                found = (tree.get("ckpt_path") or found) if isinstance(tree, dict) else found
    return found if found not in ("best", "last", "hpc", "registry", "null") else None


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


def kept_data(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings of the data that a checkpoint was trained with, and the set that it really used."""
    hparams = checkpoint.get("datamodule_hyper_parameters", {})
    kept = {key: hparams[key] for key in KEPT_DATA if isinstance(hparams.get(key), bool | int | dict)}
    used = checkpoint.get(MNISTDataModule.__qualname__, {}).get("digits_used")
    return kept | ({"source": used} if used in get_args(Source) else {})


def config_files(args: list[str]) -> list[Path]:
    """The config files that a command line names."""
    pairs = zip(args, [*args, ""][1:], strict=True)
    values = [
        arg.removeprefix("--config=") if "=" in arg else following
        for arg, following in pairs
        if arg in ("--config", "-c") or arg.startswith("--config=")
    ]
    return [Path(value) for value in values if Path(value).is_file()]


def names_a_network(args: list[str]) -> bool:
    """Whether a command line, or a config in it, says which class of network to train."""
    if any(arg == "--model.net" or arg.startswith("--model.net=") for arg in args):
        return True
    return any(map(config_names_a_network, config_files(args)))


def config_names_a_network(path: Path) -> bool:
    """Whether model.net of a config has a class."""
    try:
        net = read_yaml(path)["model"]["net"]
    except (KeyError, TypeError):
        return False
    return isinstance(net, str) or (isinstance(net, dict) and "class_path" in net)


def texts(tree: Any) -> set[str]:
    """All texts in a config, at any depth."""
    if isinstance(tree, dict):
        return texts(list(tree.values()))
    if isinstance(tree, list | tuple):
        return set().union(*(texts(value) for value in tree))
    return {tree} if isinstance(tree, str) else set()


def kept_model(hparams: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model among its hyperparameters, without Lightning's own notes."""
    return {key: value for key, value in hparams.items() if not str(key).startswith("_")}


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


def refuse_foreign_classes(settings: dict[str, Any], path: str, given: list[str]) -> None:
    """Refuse to import what a checkpoint names, unless the command line or its configs name it, too.

    Raises:
        UsageError: there is a foreign text that the user did not give.
    """
    at = [i for i, arg in enumerate(given) if arg == "--ckpt_path"]
    flags = [arg.split("=", 1)[-1] for i, arg in enumerate(given) if i - 1 not in at and "ckpt_path=" not in arg]
    trusted = {*flags, *texts([read_yaml(config) for config in config_files(given)])}
    for text in foreign_texts(settings, trusted):
        raise UsageError(
            f"{path} names {text[:80]!r}, and importing that would run its code: "
            "if you trust it, give the config that it was trained with, too (--config FILE)"
        )


def read_yaml(path: Path) -> Any:
    """A config's content, or nothing where the parser will refuse it."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return None
