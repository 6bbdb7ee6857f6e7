"""Settings from several sources, one laid over the other, where a class never takes over another class's settings.

Precedence, lowest first: the defaults of each class, `defaults.yaml`, the checkpoint, configs (later ones over earlier
ones), flags. Naming a class drops what `defaults.yaml` sets for it; naming another class than an earlier source drops
that source's settings for it.

Settings are nested dicts, as in a config; those of a class are `{"class_path": ..., "init_args": {...}}`. jsonargparse
would keep the init_args of an earlier class that a later one accepts, too: a rate chosen for AdamW would become SGD's.
So settings that a later source replaces are removed from the earlier ones before jsonargparse sees them.
"""

import sys
from collections.abc import Callable
from typing import Any

SPEC = {"class_path", "init_args", "dict_kwargs"}


def is_spec(tree: Any) -> bool:
    """Whether these are a class's settings, its name given or not."""
    return isinstance(tree, dict) and bool(SPEC & tree.keys())


def resolved(path: Any) -> Any:
    """The class of a path, where its module is imported already; else the path."""
    module, _, name = str(path).rpartition(".")
    return getattr(sys.modules.get(module), name, path) if module else path


def same_class(one: Any, other: Any) -> bool:
    """Whether two names, each a path or the last part of one, are the same class."""
    if "." in str(one) and "." in str(other):
        return resolved(one) is resolved(other) or one == other
    return str(one).rpartition(".")[2] == str(other).rpartition(".")[2]


def never(one: Any, other: Any) -> bool:
    """Treats any two classes as different: naming a class, even the default one, drops `defaults.yaml` for it."""
    del one, other
    return False


def arguments(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings inside: a class's init_args, else all of them."""
    inner = tree.get("init_args") if is_spec(tree) else tree
    return inner if isinstance(inner, dict) else {}


def explicit(tree: Any, defaults: Any) -> Any:
    """The tree with `class_path` and `init_args` spelled out where the defaults have a class."""
    if is_spec(defaults) and isinstance(tree, str):
        return {"class_path": tree}
    if not isinstance(tree, dict) or not isinstance(defaults, dict):
        return tree
    if is_spec(defaults) and not is_spec(tree):
        tree = {"init_args": tree}
    inner = arguments(defaults)
    spelled = {key: explicit(value, inner.get(key)) for key, value in arguments(tree).items()}
    return {**tree, "init_args": spelled} if is_spec(tree) and spelled else tree if is_spec(tree) else spelled


def kept(
    lower: Any, upper: Any, defaults: Any = None, is_same: Callable[[Any, Any], bool] = same_class
) -> dict[str, Any] | Any:
    """The lower settings that still hold under the upper ones; None where none do.

    Args:
        lower: settings given earlier.
        upper: settings given later; a text may be a class's name.
        defaults: the built-in settings; their class applies where `lower` names none.
        is_same: whether two names are the same class, so that the earlier settings hold.
    """
    if isinstance(lower, list) and isinstance(upper, str | list):
        return None
    if isinstance(upper, str) and is_spec(lower):
        upper = {"class_path": upper}
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return lower
    if is_spec(lower) and "class_path" in upper:
        named = lower.get("class_path") or (defaults.get("class_path") if isinstance(defaults, dict) else None)
        if not is_same(named, upper["class_path"]):
            return None
    inner, above = dict(arguments(lower)), arguments(upper)
    below = arguments(defaults) if isinstance(defaults, dict) else {}
    for key in inner.keys() & above.keys():
        inner[key] = kept(inner[key], above[key], below.get(key), is_same)
        if inner[key] is None:
            del inner[key]
    return {**lower, "init_args": inner} if is_spec(lower) else inner


def joined(lower: Any, upper: Any) -> Any:
    """The upper settings over what is kept of the lower ones; lists are replaced, or prolonged by a key with a +."""
    if is_spec(lower) and isinstance(upper, str):
        upper = {"class_path": upper}
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    result = dict(lower)
    for key, value in upper.items():
        base = key.removesuffix("+")
        if base != key and isinstance(result.get(base), list):
            result[base] = result[base] + (value if isinstance(value, list) else [value])
        else:
            result[key] = joined(result.get(key), value)
    return result


def laid_over(lower: dict[str, Any], upper: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """One source's settings over the earlier ones'."""
    upper = explicit(upper, defaults)
    return joined(kept(lower, upper, defaults), upper)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, each class's as one."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and not is_spec(value):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
