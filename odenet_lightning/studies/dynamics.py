"""Do other dynamics classify better? Of second order, with friction, and with weights that change over t."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from odenet_lightning.fields import Field, Galerkin, HeavyBall, SecondOrder
from odenet_lightning.models import Classifier, ODENet
from odenet_lightning.solvers import Midpoint
from odenet_lightning.studies.columns import Column
from odenet_lightning.studies.depth import Depth
from odenet_lightning.studies.intervals import is_decided, with_interval
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

    explained: ClassVar[str] = (
        "All take three midpoint steps. Galerkin's weights are functions of t, in three terms; SecondOrder and "
        "HeavyBall have 6 channels of velocities, 'augmented' as many of zeros, with dynamics of first order."
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column("network", is_text=True),
        Depth.columns[1],
        Column("points", f"points against {POSTS}", says="of per cent, seed by seed"),
        *(column for column in Depth.columns[2:] if column.key != "evaluations"),
    )

    def gains(self, rows: list[Row]) -> dict[str, list[float]]:
        """Points that each network gains over the post's, seed by seed."""
        posts = {row["seed"]: number(row, "accuracy") for row in rows if row["network"] == POSTS}
        return {
            name: [
                100 * (number(row, "accuracy") - posts[row["seed"]])
                for row in rows
                if row["network"] == name and row["seed"] in posts
            ]
            for name in self.networks
            if name != POSTS
        }

    def table(self, rows: list[Row]) -> list[Row]:
        """As in `Depth`, with the difference from the post's field."""
        gains = self.gains(rows)
        return [
            {**line, "points": with_interval(gained, "+.2f") if (gained := gains.get(str(line["network"]))) else None}
            for line in super().table(rows)
        ]

    def answer(self, rows: list[Row]) -> str:
        """Which networks differ from the post's by more than chance, and by how much the best does."""
        gains = {name: gained for name, gained in self.gains(rows).items() if gained}
        if not gains:
            return f"no seed has {POSTS} and another field."
        decided = [name for name, gained in gains.items() if is_decided(gained)]
        best = max(gains, key=lambda name: statistics.mean(gains[name]))
        told = f"the best is {best}, by {with_interval(gains[best], '+.2f')} points (n = {len(gains[best])})."
        if decided:
            return f"different from {POSTS}: {'; '.join(decided)}; {told}"
        return f"none is distinguishable from {POSTS}; {told}"
