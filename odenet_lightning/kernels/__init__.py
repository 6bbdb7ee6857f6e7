"""Faster evaluations and steps of a field. PyTorch's operators are the reference, and run where no kernel does.

A kernel is a function of tensors that gives the same numbers to rounding. It is compiled when the package is
installed, where there is a C compiler; the environment variable `ODENET_KERNELS=0` switches it off, and
`ODENET_KERNELS=triton` adds a kernel for GPUs.
"""

from odenet_lightning.kernels.compiled import library
from odenet_lightning.kernels.conv_field import Parameters, evaluate_conv_field, take_conv_field_step
from odenet_lightning.kernels.plan import FusedStep, Plan

__all__ = ["FusedStep", "Parameters", "Plan", "evaluate_conv_field", "library", "take_conv_field_step"]
