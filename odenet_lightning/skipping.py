"""Batches that are left out because their solve failed."""

from typing import Literal

from odenet_lightning.solvers import SolverError

OnSolverError = Literal["raise", "skip"]

MAX_SKIPS = 10  # batches in a row left out before the run ends


class Skips:
    """Counts the batches left out, and ends the run where none may be, or too many in a row are.

    Args:
        on_solver_error: "skip" where they may be left out, else "raise".
    """

    def __init__(self, on_solver_error: OnSolverError) -> None:
        if on_solver_error not in ("raise", "skip"):
            raise ValueError(f'on_solver_error must be "raise" or "skip", not {on_solver_error!r}')
        self.allowed, self.total, self.in_a_row = on_solver_error == "skip", 0, 0

    def add(self, error: SolverError) -> None:
        """Count a batch, or raise its error.

        Raises:
            SolverError: none may be left out, or this is one too many in a row.
        """
        if not self.allowed:
            raise error
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        if self.in_a_row > MAX_SKIPS:
            raise SolverError(f"{self.in_a_row} batches in a row could not be solved; the last: {error}") from error

    def solved(self) -> None:
        """Note a batch that was not left out."""
        self.in_a_row = 0
