"""Vector fields f(t, y): the right-hand sides of dy/dt = f(t, y).

A field is stateless (no counters, no running statistics) and keeps the shape of the state.
"""

from odenet_lightning.fields.base import Field
from odenet_lightning.fields.convolutions import (
    BottleneckField,
    Conv,
    ConvField,
    SameConv,
    TimeBiasField,
    TimeConv,
    TimeConvField,
    group_count,
    is_as_made,
)
from odenet_lightning.fields.dynamics import Galerkin, HeavyBall, SecondOrder

__all__ = [
    "BottleneckField",
    "Conv",
    "ConvField",
    "Field",
    "Galerkin",
    "HeavyBall",
    "SameConv",
    "SecondOrder",
    "TimeBiasField",
    "TimeConv",
    "TimeConvField",
    "group_count",
    "is_as_made",
]
