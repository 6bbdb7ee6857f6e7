"""Studies with their default settings, on the sample."""

from typing import Any

from odenet_lightning.studies import STUDIES
from odenet_lightning.studies.columns import Row

NETWORKS = ("none", "ResNet-1", "ODENet")


def made(name: str, **settings: Any) -> Any:
    return STUDIES[name](**settings)


def depth_rows(gains: list[float]) -> list[Row]:
    """Runs in which the ODE is better by so many points."""
    common = {"parameters": 10_000, "seconds": 1.0, "evaluations": 6}
    return [
        {**common, "network": name, "seed": seed, "accuracy": 0.9 + (gain / 100 if name == "ODENet" else 0)}
        for seed, gain in enumerate(gains)
        for name in NETWORKS
    ]
