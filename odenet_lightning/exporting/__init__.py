"""Trained networks as files that run without this package: ONNX and torch.export's programs."""

from odenet_lightning.exporting.check import Agreement, compare
from odenet_lightning.exporting.fixed import FixedInstead, fixed_instead, needs_fixed_steps
from odenet_lightning.exporting.formats import FORMATS, ExportError
from odenet_lightning.exporting.graph import FromPixels, traced

__all__ = [
    "FORMATS",
    "Agreement",
    "ExportError",
    "FixedInstead",
    "FromPixels",
    "compare",
    "fixed_instead",
    "needs_fixed_steps",
    "traced",
]
