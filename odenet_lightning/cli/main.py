"""The command line's entry: chooses the command, and ends every error in one line."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from odenet_lightning import __version__
from odenet_lightning.checkpoints import RefusedCheckpoint, watch_for_preemption
from odenet_lightning.cli.app import CLI
from odenet_lightning.cli.argv import split
from odenet_lightning.cli.errors import DEBUG, PROGRAM, UsageError, explain, quieten
from odenet_lightning.cli.malloc import keep_freed_memory

COMMANDS = {
    "fit": "train a network",
    "validate": "measure a trained network on the validation images",
    "test": "measure a trained network on the test images",
    "predict": "classify your own pictures with a trained network",
    "export": "write a trained network for ONNX Runtime or torch.export",
    "demo": "draw a digit in the browser and see what the network makes of it",
    "study": "answer a question about Neural ODEs in rows and a figure",
}
OF_LIGHTNING = ("fit", "validate", "test", "predict")
# each a function in a file of its name; they bring scipy, animations, Gradio
IMPORTED_LATE = ("export", "demo", "study")

HELP = f"""usage: {PROGRAM} COMMAND [OPTIONS]

Train Neural ODE classifiers, and examine them.

commands:
{chr(10).join(f"  {name:<10} {said}" for name, said in COMMANDS.items())}

options:
  -h, --help  this text; after a command, its options ({PROGRAM} fit --help)
  --version   the version

'{PROGRAM} fit' alone trains on MNIST, or on a sample of it without internet access.
Set {DEBUG}=1 to see where an error was raised."""


def run_command(given: Sequence[str]) -> None:
    """Run a command line."""
    first = given[0] if given else ""
    if first in ("", "-h", "--help"):
        print(HELP)
        raise SystemExit(0 if first else 2)
    if first == "--version":
        print(__version__)
    elif first in IMPORTED_LATE:
        getattr(import_module(f"odenet_lightning.cli.{first}"), first)(list(given[1:]))
    elif first in OF_LIGHTNING or (first.startswith("-") and set(OF_LIGHTNING) & set(given)):
        line = split(list(given), OF_LIGHTNING)
        if line.command != "fit" and line.checkpoint is None and not line.only_asks:
            raise UsageError(f"{line.command} needs a trained network: --ckpt_path FILE (fit prints it at its end)")
        CLI(line, parser_kwargs={"prog": PROGRAM})
    else:
        near = difflib.get_close_matches(first, COMMANDS, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no command {first!r}: {meant}The commands are {', '.join(COMMANDS)}")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; errors end in one line and exit code 1 (2 for a wrong call)."""
    quieten()
    keep_freed_memory()
    watch_for_preemption()
    try:
        run_command(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:  # a fit that trains keeps its state and says so
        print("\ninterrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except Exception as e:
        if os.environ.get(DEBUG):
            raise
        print(f"error: {explain(e)}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(e, UsageError | RefusedCheckpoint) else 1) from None
