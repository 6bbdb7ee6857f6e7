"""The parts of a command line, before it is parsed: command, configs' settings, flags and checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from odenet_lightning.checkpoints import checkpoint_file
from odenet_lightning.checkpoints.trust import texts
from odenet_lightning.cli.errors import UsageError
from odenet_lightning.cli.layers import arguments, kept, laid_over, never, same_class

DATA = "odenet_lightning.MNISTDataModule"
CONFIG_FLAGS = ("--config", "-c")
GROUPS = {"model", "data", "trainer", "checkpoint", "last", "pictures", "nfe"}
WORDS = ("best", "last", "hpc", "registry", "null")  # Lightning's, in the place of a checkpoint's path


@dataclass
class CommandLine:
    """A command line, taken apart.

    Args:
        command: fit, validate, test or predict.
        configs: the settings of all configs, a later one laid over the earlier ones.
        flags: all other words, in order.
        trusted: all texts in configs and flags, except the checkpoint's path. Classes that a checkpoint names may be
            imported if they are among them.
    """

    command: str
    configs: dict[str, Any]
    flags: list[str]
    trusted: set[str]

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint's path, by its name if it comes with the package; None for one of Lightning's words."""
        paths = [value for key, value in pairs(self.flags) if key == ["ckpt_path"] and value is not None]
        path = paths[-1] if paths else self.configs.get("ckpt_path")
        if path is not None and not isinstance(path, str):
            raise UsageError(f"ckpt_path must name a file, not {path!r}")
        return None if path is None or path in WORDS else str(checkpoint_file(path))

    @property
    def only_asks(self) -> bool:
        """Whether only help or a config is to be printed, so that no trained network is needed."""
        names = [flag.split("=")[0] for flag in self.flags if flag.startswith("-")]
        return any(name in ("-h", "--help", "--print_config") or name.endswith(".help") for name in names)

    @property
    def data_class(self) -> str | None:
        """The class of the user's data module; None for the built-in one. `--data.help` counts as one of the user's."""
        if any(flag == "--data.help" or flag.startswith("--data.help=") for flag in self.flags):
            return "lightning.LightningDataModule"
        named = (self.configs.get("data") or {}).get("class_path")
        for key, value in pairs(self.flags):
            if key in (["data"], ["data", "class_path"]):
                given = loaded(value)
                named = given.get("class_path", named) if isinstance(given, dict) else given
        return None if named is None or same_class(named, DATA) else str(named)

    def given(self, *place: str) -> Any:
        """What configs or flags give at a place, such as `model`, `net`; None if nothing."""
        tree: Any = self.configs
        for part in place:
            tree = arguments(tree).get(part) if isinstance(tree, dict) else None
        for key, value in pairs(self.flags):
            if key in ([*place], [*place, "class_path"]):
                tree = loaded(value)
        return tree

    @property
    def parsed_flags(self) -> list[str]:
        """The flags without the built-in data module's name: the parser takes its settings without a class."""
        if self.data_class:
            return self.flags
        places = [i for i, flag in enumerate(self.flags) if flag in ("--data", "--data.class_path")]
        named = {i for i in places if same_class("".join(self.flags[i + 1 : i + 2]), DATA)}
        gone = named | {i + 1 for i in named}
        return [flag for i, flag in enumerate(self.flags) if i not in gone and not flag.startswith("--data=odenet_")]

    def settings(self, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Merge the settings below the flags.

        Args:
            checkpoint: the checkpoint's settings.

        Returns:
            Two trees: the built-in defaults, and the checkpoint's settings with the configs' laid over them. Settings
            of a class that a later source replaces are left out of both.

        Raises:
            UsageError: a flag comes before the class that it belongs to.
        """
        given, chosen = laid_over(checkpoint, self.configs, defaults()), kept(defaults(), self.configs, None, never)
        base = kept(chosen, checkpoint, None, never)
        seen: list[list[str]] = []
        for key, text in pairs(self.flags):
            value = loaded(text)
            earlier = [other for other in seen if other[: len(key)] == key and len(other) > len(key)]
            if earlier and (isinstance(value, str) or "class_path" in (value or {})):
                name = ".".join(key)
                raise UsageError(
                    f"--{'.'.join(earlier[0])} stands before --{name} {text}: its settings need its class before them"
                )
            seen.append(key)
            tree: Any = value
            for part in reversed(key[:-1] if key[-1] == "class_path" else key):
                tree = {part: tree}
            given = kept(given, tree, defaults())
            chosen, base = (kept(below, tree, None, never) for below in (chosen, base))
        if not (has_solver(chosen) and has_solver(kept(defaults(), checkpoint, None))):
            base.pop("trainer", None)  # the coarse start goes with the quick recipe's network and solver
        return base, given


def has_solver(settings: dict[str, Any]) -> bool:
    """Whether the quick recipe's network and its solver are among these settings."""
    return "solver" in arguments(arguments(settings.get("model") or {}).get("net") or {})


@cache
def defaults() -> dict[str, Any]:
    """The built-in recipe."""
    tree = yaml.safe_load(Path(__file__).with_name("defaults.yaml").read_text())
    return {**tree, "data": {"class_path": DATA, "init_args": tree["data"]}}


def split(given: list[str], commands: tuple[str, ...]) -> CommandLine:
    """Take a command line apart.

    Args:
        given: its words, of which one is a command.
        commands: their names.

    Raises:
        UsageError: a config cannot be read, or there is a flag before the command.
    """
    command = next(word for word in given if word in commands)
    place = given.index(command)
    settings: dict[str, Any] = {}
    trusted: set[str] = set()
    flags: list[str] = []
    words = iter(given[:place] + given[place + 1 :])
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in CONFIG_FLAGS:
            flags.append(word)
            continue
        value = value if equals else next(words, "")
        tree = read_config(value)
        if index < place and command in tree:  # Lightning's own form: a config for several commands
            tree = tree[command]
        trusted |= texts(tree)
        settings = laid_over(settings, tree, defaults())
    if place and flags[:1] == given[:1]:
        raise UsageError(f"{given[0]} stands before the command: {command} {given[0]} ...")
    at = [i for i, flag in enumerate(flags) if flag == "--ckpt_path"]
    trusted |= {flag.split("=", 1)[-1] for i, flag in enumerate(flags) if i - 1 not in at and "ckpt_path=" not in flag}
    return CommandLine(command, settings, flags, trusted)


def pairs(flags: list[str]) -> Iterator[tuple[list[str], str | None]]:
    """Each flag as the parts of its name, without `init_args`, and its value; None where there is none."""
    for flag, following in zip(flags, [*flags, "--"][1:], strict=False):
        if flag.startswith("--"):
            name, equals, value = flag[2:].partition("=")
            value = value if equals else None if following.startswith("--") else following
            yield [part for part in name.split(".") if part != "init_args"], value


def loaded(value: str | None) -> Any:
    """A flag's value: the settings in a file or in a text, else the text."""
    if value is None or not (value.endswith((".yaml", ".yml")) or value.startswith(("{", "["))):
        return value
    path = Path(value)
    try:
        return read_config(value) if path.is_file() else get_loader("yaml")(value)
    except (yaml.YAMLError, UsageError):
        return value  # the parser says what is wrong with it


def read_config(value: str) -> dict[str, Any]:
    """The settings in a config, or in a text of YAML, with those of the files that it names.

    A config can name one or several others under `config`, which it is laid over, and a file in the place of a class's
    settings. Both are looked up beside the config.

    Raises:
        UsageError: it cannot be read.
    """
    path = Path(value)
    if not value or (not path.is_file() and ":" not in value):
        raise UsageError(f"there is no config {value or '(--config needs a file)'}")
    return _read(path, ()) if path.is_file() else _parsed(value, value)


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        tree = get_loader("yaml")(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name} is not YAML{place}: {getattr(e, 'problem', None) or e}") from e
    if not isinstance(tree, dict):
        raise UsageError(
            f"{name} {'is empty' if not text.strip() else 'holds no settings'}: give 'option: value' lines"
        )
    tree = {key: value for key, value in tree.items() if key not in GROUPS or value is not None}
    for key in GROUPS & tree.keys():
        if not isinstance(tree[key], dict) and not (key == "data" and isinstance(tree[key], str)):
            raise UsageError(f"{name}: {key} needs 'option: value' lines of its own, not {str(tree[key])[:80]!r}")
    return tree


def _read(path: Path, outer: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in outer:
        raise UsageError(f"{path} names itself as its config")
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as e:
        raise UsageError(f"{path} cannot be read as a config: {getattr(e, 'strerror', None) or 'not a text'}") from e
    outer = (*outer, path.resolve())
    tree = _inlined(_parsed(text, str(path)), path.parent, outer)
    named = tree.pop("config", None) or []
    settings: dict[str, Any] = {}
    for name in [named] if isinstance(named, str) else named:
        if not (path.parent / str(name)).is_file():
            raise UsageError(f"{path} names a config that is not there: {path.parent / str(name)}")
        settings = laid_over(settings, _read(path.parent / str(name), outer), defaults())
    return laid_over(settings, tree, defaults())


def _inlined(tree: Any, folder: Path, outer: tuple[Path, ...]) -> Any:
    if isinstance(tree, dict):
        return {k: v if k == "config" else _inlined(v, folder, outer) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_inlined(value, folder, outer) for value in tree]
    is_file = isinstance(tree, str) and tree.endswith((".yaml", ".yml")) and (folder / tree).is_file()
    return _read(folder / tree, outer) if is_file else tree


def bare_data(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose `data` are the built-in data module's, which has no class to name."""
    data = arguments(settings["data"]) if "data" in settings else {}
    return {**settings, "data": data} if data else {k: v for k, v in settings.items() if k != "data"}
