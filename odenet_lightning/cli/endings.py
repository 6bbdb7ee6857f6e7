"""How a fit ends early: with a line that says which checkpoint is left."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odenet_lightning.checkpoints import CheckpointError
from odenet_lightning.cli.errors import explain, is_lost_process
from odenet_lightning.cli.report import best_checkpoint, how_to_resume
from odenet_lightning.divergence import DivergenceError
from odenet_lightning.solvers import SolverError


@contextmanager
def telling_what_is_left(trainer: Trainer) -> Iterator[None]:
    """Add what is left of a run to the errors that end it, and end with the exit codes that shells expect."""
    try:
        yield
    except (SolverError, DivergenceError, CheckpointError) as error:
        kept, _ = best_checkpoint(trainer)
        left = f"the best checkpoint so far is {os.path.relpath(kept)}" if kept else "there is no checkpoint yet"
        advice = "; in training a smaller learning rate or gradient clipping may help"
        raise type(error)(f"{error}{advice if isinstance(error, SolverError) else ''}; {left}") from error
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise RuntimeError(f"{explain(error)}; {how_to_resume(trainer)}") from error
    except SystemExit as end:  # Lightning ends with 0 after a SIGTERM, with 1 after Ctrl-C before the first step
        code = 143 if isinstance(end, SIGTERMException) else 130 if end.code in (1, 130) else None
        if code is None:  # a preempted job
            raise
        if trainer.is_global_zero:
            stopped = f"interrupted at step {trainer.global_step:,}"
            print(f"{stopped}: {how_to_resume(trainer)}", file=sys.stderr, flush=True)
        raise SystemExit(code) from None
