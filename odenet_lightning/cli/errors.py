"""Errors in one line, and warnings without their source line."""

import logging
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from odenet_lightning.solvers import FieldError

PROGRAM = "python -m odenet_lightning"
DEBUG = "ODENET_DEBUG"  # environment variable: show tracebacks


class UsageError(RuntimeError):
    """The command line cannot be understood."""


class ConstructionError(RuntimeError):
    """A class that the command line names cannot be made with these settings."""


# what jsonargparse says of a union's branches without helping a reader
NOISE = ("Does not validate", "Expected a NoneType", "Expected a path", "Given value", "Subtypes")

# what it says of classes, as what to do about it; a class that was meant beats the other branches of its union
CLASS_HINTS = {
    r"Expected a dot import path string: ([A-Z]\w*)": r"no class '\1' is known: 'fit --help' lists this project's, "
    "and your own goes by its path (mine.MyClass)",
    r"Expected an instantiatable class, but.* is abstract": "the class is abstract: its settings need its class before "
    "them, and a class of your own needs all the methods of its base class (forward, say)",
}

# what argparse says of options that it does not know, and Lightning of those that this project's module cannot serve,
# as what to do about it
FORESEEN = {
    r"`ModelCheckpoint\(monitor='(.*)'\)` could not find .*: \[(.*)\]\. HINT.*": r"--checkpoint.monitor \1 is not "
    r"logged: what is, is \2",
    r"Target (\d+) is out of bounds\.": r"the network has no output for label \1: it needs one for each class",
    r"(unrecognized arguments: .*)": r"\1 (options are written out in full, as --help lists them)",
    r"(?s).*'ClassifierModule' object has no attribute '(\w+)'.*": r"a callback needs the module to have "
    r"'\1', which it does not: leave the callback out",
}


def condense(message: str) -> str:
    """Jsonargparse's report of a failed parse, a tree over several lines, as the path to its most telling leaf."""
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message.strip())
    if not re.search(r"Does not validate|\s- Expected ", message):
        return " ".join(message.split())
    keys: list[str] = []
    leaves: list[tuple[bool, int, str]] = []  # each with whether it says more than a type, and its depth
    for part in re.split(r"(?:^|\n)\s*-\s|Errors:|(?=Given value)", message):
        part = re.sub(r"Problem with given class_path '[^']*':", "", " ".join(part.split())).strip()
        while key := re.match(r'Parser key "([^"]+)":\s*', part):
            keys.append(key.group(1))
            part = part[key.end() :]
        if part and not part.startswith(NOISE):
            depth = len(keys) + bool(re.match(r"[\w.]+: ", part))
            leaves.append((not part.startswith("Expected"), depth, f"{'.'.join(keys)}: {part}" if keys else part))
    for *_, leaf in leaves:
        for pattern, hint in CLASS_HINTS.items():
            if re.search(pattern, leaf):
                return re.sub(pattern, hint, leaf)
    # the deepest: what is wrong with an option of the class that was meant, not that it is no bool
    return max(leaves, key=lambda leaf: leaf[:2], default=(False, 0, ""))[2]


def named_in_errors(kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor; whatever it raises names its class: jsonargparse would mix it with what it says of types."""
    try:
        return kind(*args, **kwargs)
    except Exception as e:
        said = " ".join(str(e).split()) or type(e).__name__
        raise ConstructionError(said if said.startswith(kind.__name__) else f"{kind.__name__}: {said}") from e


def quieten() -> None:
    """Silence what Lightning says at every start and what does not hold here."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    # the best checkpoint's state is brought along all the same
    warnings.filterwarnings("ignore", message=".*The dirpath has changed from.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # a run that ends before its first validation has no best checkpoint, as its summary says
    warnings.filterwarnings("ignore", message=".*could not find the monitored key in the returned metrics.*")
    # third parties' deprecations are theirs to mend
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*treespec.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*smaller than the logging interval.*")
    warnings.showwarning = show_warning


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning without the source line that raised it."""
    text = str(message).strip()
    # above a progress bar, where there is one
    tqdm.write(text if text.startswith("***") else f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()


def is_lost_process(error: BaseException) -> bool:
    """Whether an error is that of a process whose peers are gone."""
    return re.search(r"gloo/transport|NCCL (error|communicator)", str(error)) is not None


def own_place(error: BaseException) -> str:
    """Where a user's own code raised an error, or called what raised it: "TimedField.forward (mine.py, line 12)".

    Empty where none of the user's is on the way, or where this project or Lightning raised it: they say what to do.
    """
    raised = error.__cause__ if isinstance(error, FieldError) and error.__cause__ else error
    frames = [frame for frame, _ in traceback.walk_tb(raised.__traceback__)]
    files = [Path(frame.f_code.co_filename) for frame in frames]
    project = Path(__file__).parents[1]
    says_enough = [project, *(Path(sysconfig.get_path("purelib")) / name for name in ("lightning", "jsonargparse"))]
    if not files or any(files[-1].is_relative_to(folder) for folder in says_enough):
        return ""
    libraries = project, *(Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    for frame, file in zip(reversed(frames), reversed(files), strict=True):
        if file.is_file() and not any(file.is_relative_to(folder) for folder in libraries):
            owner = f"{type(frame.f_locals['self']).__name__}." if "self" in frame.f_locals else ""
            return f"{owner}{frame.f_code.co_name} ({file.name}, line {frame.f_lineno})"
    return ""


def explain(error: BaseException) -> str:
    """An error in one line."""
    if is_lost_process(error):
        return "another process of this run has ended, or cannot be reached: see its own error"
    text = condense(str(error))
    place, is_fields = own_place(error), isinstance(error, FieldError) and error.__cause__ is not None
    if place or is_fields:
        text = text if is_fields else f"{type(error).__name__}: {text}"
        return f"{text} ({f'raised in {place}; ' if place else ''}set {DEBUG}=1 to see the calls that led there)"
    if "Error(s) in loading state_dict" in text:
        return f"the checkpoint does not fit the network of this config ({text.split(':', 2)[-1].strip()[:160]} ...)"
    for pattern, hint in FORESEEN.items():
        if re.fullmatch(pattern, text):
            return re.sub(pattern, hint, text)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, RuntimeError | ValueError | ImportError | MisconfigurationException) and text:
        return text
    return f"{type(error).__name__}: {text} (unexpected; set {DEBUG}=1 to see where it was raised)"
