"""Settings: the base class of solvers and gradient methods."""

import math
from numbers import Integral
from typing import Any


class Settings:
    """An object of settings only: shown as the call that makes it, and equal to another one of the same values."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy; a float or a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Refuse a value that is not a whole number of at least `least` (see `is_whole`).

    Raises:
        ValueError: with the name of the setting.
    """
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_positive_number(name: str, value: Any) -> None:
    """Refuse a value that is not a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, float | int) or not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
