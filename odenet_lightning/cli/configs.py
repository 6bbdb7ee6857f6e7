"""Configs: the built-in recipe, and YAMLs with the files that they name."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from odenet_lightning.cli.errors import UsageError
from odenet_lightning.cli.layers import laid_over

DATA = "odenet_lightning.MNISTDataModule"
GROUPS = {"model", "data", "trainer", "checkpoint", "last", "pictures", "nfe", "is_ode", "evaluation"}


@cache
def defaults() -> dict[str, Any]:
    """The built-in recipe."""
    tree = yaml.safe_load(Path(__file__).with_name("defaults.yaml").read_text())
    return {**tree, "data": {"class_path": DATA, "init_args": tree["data"]}}


def read_config(value: str) -> dict[str, Any]:
    """The settings in a config, or in a text of YAML, with those of the files that it names.

    A config can name one or several others under `config`, which it is laid over, and a file in the place of a class's
    settings. Both are looked up beside the config.
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
