"""The page's sentences and its table of probabilities."""

from collections.abc import Sequence
from html import escape

from PIL import UnidentifiedImageError
from torch import Tensor

from odenet_lightning.data.picture_files import FORMATS
from odenet_lightning.demo.computing import Answer
from odenet_lightning.solvers import Solver, SolverError

TITLE = """# What a Neural ODE makes of a digit
The network turns a digit into a state y(0), lets it follow the differential equation dy/dt = f(t, y) to t = 1, and
reads the answer off y(1). Draw a digit, move t, and change how the equation is solved."""

BLANK = "Draw a digit, or take one of the sample."
NONE_CHANGED = "An accurate solver reads all of the sample's digits here as this network does: it is an ODE."


def reading(answer: Answer, names: Sequence[str]) -> str:
    """The predicted class and its probability."""
    share, index = answer.probabilities.max(0)
    return f"**{names[int(index)]}** ({float(share):.1%})"


def often(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{count} times"


def verdict(solver: Solver, own: Answer, accurate: Solver, exact: Answer, names: Sequence[str]) -> str:
    """The prediction under the chosen solver, compared with that under an accurate one."""
    steps = f"takes {len(own.steps)} step{'' if len(own.steps) == 1 else 's'} and " if own.steps else ""
    told = (
        f"`{type(solver).__name__}` {steps}evaluates f {often(own.evaluations)}. It reads "
        f"{reading(own, names)}.\n\nAn accurate solver, `{type(accurate).__name__}`, evaluates f "
        f"{often(exact.evaluations)} and reads {reading(exact, names)}. "
    )
    if own.probabilities.argmax() == exact.probabilities.argmax():
        return told + "**They agree**: the answer is the equation's."
    return (
        told + "**They disagree**: these steps are too coarse to follow the equation, or the network has learned "
        "its own steps instead of an equation."
    )


def explained(error: Exception) -> str:
    """An error as a sentence on the page."""
    told = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SolverError):
        return f"**The equation could not be solved**: {told}."
    if isinstance(error, UnidentifiedImageError):
        told = f"it is not a picture in one of the formats {', '.join(FORMATS)}"
    return f"**This picture cannot be used**: {told}."


def bars(probabilities: Tensor, names: Sequence[str]) -> str:
    """The probabilities `[K]` as a table with a bar each."""
    highest = int(probabilities.argmax())
    rows = [
        f"<tr{' class=first' if k == highest else ''}><td>{escape(name)}</td>"
        f'<td><b style="width:{share:.1%}"></b></td><td>{share:.1%}</td></tr>'
        for k, (name, share) in enumerate(zip(names, probabilities.tolist(), strict=True))
    ]
    return f'<table class="bars">{"".join(rows)}</table>'
