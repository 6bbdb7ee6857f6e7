"""Do other dynamics classify better? Of second order, with friction, and with weights that change over t."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from odenet_lightning.fields import Field, Galerkin, HeavyBall, SecondOrder
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.solvers import Midpoint
from odenet_lightning.studies.cost import with_interval
from odenet_lightning.studies.depth import Depth
from odenet_lightning.studies.study import Row, number


def network(make: Callable[[], Field] | None = None, augment_dim: int = 0, channels: int = 6) -> Callable[[], ODENet]:
    """Makes the post's network with another field, solved by three midpoint steps."""
    solver = Midpoint(num_steps=3)
    return lambda: ODENet(channels, solver, field=make() if make else None, augment_dim=augment_dim)


POSTS = "ConvField"


@dataclass
class Dynamics(Depth):
    """Test accuracy of the post's network with other dynamics, at six evaluations per solve, trained alike.

    Galerkin's weights have three terms each, so the field has three times the parameters. Dynamics of second order
    have 6 channels of velocities besides the post's, which the head sees, too; "augmented" is of first order with as
    many channels. Velocities begin at zero, or are 6 more channels of the stem.
    The last weights are tested once, none are chosen.

    Args:
        seeds: runs per network, counted from `seed`.
        epochs: passes over the digits.
        batch_size: images per step.
        lr: the one-cycle's peak, of AdamW.
    """

    epochs: int = 1

    quick: ClassVar[dict[str, Any]] = {"seeds": 1, "batch_size": 64}
    networks: ClassVar[dict[str, Callable[[], Classifier]]] = {
        POSTS: network(),
        "Galerkin, fourier": network(lambda: Galerkin(basis="fourier")),
        "Galerkin, polynomial": network(lambda: Galerkin(basis="polynomial")),
        "Galerkin, piecewise": network(lambda: Galerkin(basis="piecewise")),
        "augmented": network(augment_dim=6),
        "SecondOrder": network(SecondOrder, augment_dim=6),
        "HeavyBall": network(HeavyBall, augment_dim=6),
        "SecondOrder, velocity of the stem": network(SecondOrder, channels=12),
    }

    def table(self, rows: list[Row]) -> list[Row]:
        """As in `Depth`, with the difference from the post's field, seed by seed."""
        posts = {row["seed"]: number(row, "accuracy") for row in rows if row["network"] == POSTS}
        lines = super().table(rows)
        for line in lines:
            mine = [row for row in rows if row["network"] == line["network"] != POSTS and row["seed"] in posts]
            gained = [100 * (number(row, "accuracy") - posts[row["seed"]]) for row in mine]
            line["points"] = with_interval(gained or None)
        return lines
