"""The parts of a command line, before it is parsed: command, configs' settings, flags and checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from odenet_lightning.checkpoints import checkpoint_file
from odenet_lightning.checkpoints.trust import texts
from odenet_lightning.cli.configs import DATA, defaults, read_config
from odenet_lightning.cli.errors import UsageError
from odenet_lightning.cli.layers import arguments, kept, laid_over, never, same_class

CONFIG_FLAGS = ("--config", "-c")
WORDS = ("best", "last", "hpc", "registry", "null")  # Lightning's own, instead of a checkpoint's path


@dataclass
class CommandLine:
    """A command line, taken apart.

    Args:
        command: fit, validate, test or predict.
        configs: the settings of all configs, a later one laid over the earlier ones.
        flags: all other words, in order.
        trusted: all texts in configs and flags, except a checkpoint's path: classes that a checkpoint may name.
    """

    command: str
    configs: dict[str, Any]
    flags: list[str]
    trusted: set[str]

    @property
    def checkpoint(self) -> str | None:
        """The file of the checkpoint that is tested or resumed; None if it is one of Lightning's words for one."""
        path = self._file("ckpt_path")
        return None if path is None or path in WORDS else str(checkpoint_file(path))

    @property
    def weights(self) -> str | None:
        """The file of the checkpoint whose weights a new run starts from; a resumed run has its own."""
        path = self._file("weights") if self.command == "fit" and self.checkpoint is None else None
        return None if path is None else str(checkpoint_file(path))

    def _file(self, name: str) -> str | None:
        paths = [value for key, value in pairs(self.flags) if key == [name] and value is not None]
        path = paths[-1] if paths else self.configs.get(name)
        if path is not None and not isinstance(path, str):
            raise UsageError(f"{name} must name a file, not {path!r}")
        return path

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
            base.pop("trainer", None)  # the coarse start goes with the built-in recipe's network and solver
        return base, given


def has_solver(settings: dict[str, Any]) -> bool:
    """Whether the built-in recipe's network and its solver are among these settings."""
    return "solver" in arguments(arguments(settings.get("model") or {}).get("net") or {})


def split(given: list[str], commands: tuple[str, ...]) -> CommandLine:
    """Take a command line apart.

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
    files = [i for i, flag in enumerate(flags) if flag.split("=")[0] in ("--ckpt_path", "--weights")]
    named = {i + ("=" not in flags[i]) for i in files}
    trusted |= {flag.split("=", 1)[-1] for i, flag in enumerate(flags) if i not in named}
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


def bare_data(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose `data` are the built-in data module's, which has no class to name."""
    data = arguments(settings["data"]) if "data" in settings else {}
    return {**settings, "data": data} if data else {k: v for k, v in settings.items() if k != "data"}
