"""The command line: `python -m odenet_lightning COMMAND`."""

from odenet_lightning.cli.main import main

__all__ = ["main"]
