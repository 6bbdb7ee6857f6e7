"""What a command line says before it is parsed: its configs, its checkpoint, and what that may bring along."""

from pathlib import Path
from typing import Any, get_args

import yaml

from odenet_lightning.checkpoints.read import load_checkpoint as load_checkpoint
from odenet_lightning.checkpoints.trust import foreign_texts as foreign_texts
from odenet_lightning.checkpoints.trust import is_known_class as is_known_class
from odenet_lightning.checkpoints.trust import refuse_foreign, texts
from odenet_lightning.data import MNISTDataModule, Source

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


def kept_model(hparams: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model among its hyperparameters, without Lightning's own notes."""
    return {key: value for key, value in hparams.items() if not str(key).startswith("_")}


def refuse_foreign_classes(settings: dict[str, Any], path: str, given: list[str]) -> None:
    """Refuse to import what a checkpoint names, unless the command line or its configs name it, too.

    Raises:
        RefusedCheckpoint: there is a foreign text that the user did not give.
    """
    at = [i for i, arg in enumerate(given) if arg == "--ckpt_path"]
    flags = [arg.split("=", 1)[-1] for i, arg in enumerate(given) if i - 1 not in at and "ckpt_path=" not in arg]
    trusted = {*flags, *texts([read_yaml(config) for config in config_files(given)])}
    refuse_foreign(settings, path, trusted, "give the config that it was trained with, too (--config FILE)")


def read_yaml(path: Path) -> Any:
    """A config's content, or nothing where the parser will refuse it."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return None
