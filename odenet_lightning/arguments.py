"""What a command line says before it is parsed: its configs, its checkpoint, and what that may bring along."""

import re
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from odenet_lightning.data import MNISTDataModule
from odenet_lightning.sources import Source

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


def foreign_texts(settings: Any, trusted: set[str]) -> list[str]:
    """Texts in a config that are neither plain words, nor classes of this project or torch, nor trusted.

    A text that is no plain word may be a class path, or YAML or a file with one in it: the parser would
    follow all of them.
    """
    known = r"[\w+-]*|(odenet_lightning|torch)(\.[A-Za-z_]\w*)+"
    return sorted(text for text in texts(settings) - trusted if not re.fullmatch(known, text))


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
