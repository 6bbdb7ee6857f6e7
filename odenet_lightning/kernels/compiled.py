"""The compiled kernels: found, loaded, and called with addresses."""

import ctypes
import os
import platform
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

ADDRESS, LONG, DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
# what torch calls a CPU's vector instructions -> the extensions compiled for them, best first
BUILDS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}
ARM = ("aarch64", "arm64")


class Step(ctypes.Structure):
    """`Step` of conv_field.c, where each part is explained."""

    _fields_ = (
        *[(name, ADDRESS) for name in ("y", "k_first", "gamma", "beta", "weight", "bias", "a", "error", "h")],
        *[(name, DOUBLE) for name in ("rtol", "atol", "eps")],
        *[(name, LONG) for name in ("images", "channels", "height", "width", "points", "threads")],
        *[(name, ADDRESS) for name in ("inner", "y1", "k_last", "kept", "ratio", "by_y1", "by_k_last")],
        *[(f"by_{name}", ADDRESS) for name in ("y", "k_first", "gamma", "beta", "weight", "bias")],
    )


class Library:
    """The functions of conv_field.c, compiled for the vector instructions in `name`."""

    def __init__(self, name: str, path: str) -> None:
        self.name, self.functions = name, ctypes.CDLL(path)
        for function in (self.functions.conv_field_step, self.functions.conv_field_step_backward):
            function.argtypes = [ctypes.POINTER(Step), ADDRESS]
        self.functions.multiply_adds.argtypes, self.functions.multiply_adds.restype = [LONG, ADDRESS], DOUBLE
        # torch's own threads, by OpenMP's entry point: a second pool would compete with them
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self.parallel: Any = parallel and ctypes.cast(parallel, ADDRESS)

    def forward(self, step: Step) -> None:
        """Take a step.

        Raises:
            MemoryError: memory is exhausted.
        """
        if self.functions.conv_field_step(step, self.parallel):
            raise MemoryError("no memory for the field's kernel")

    def backward(self, step: Step) -> None:
        """Differentiate a step.

        Raises:
            MemoryError: memory is exhausted.
        """
        if self.functions.conv_field_step_backward(step, self.parallel):
            raise MemoryError("no memory for the field's kernel")

    def multiply_adds(self, rounds: int) -> float:
        """Do multiply-adds as fast as one core can; return their number."""
        sums = torch.empty(64)  # held until the call is over
        return self.functions.multiply_adds(rounds, sums.data_ptr())


def address(x: Tensor | None) -> int | None:
    """Where a tensor's values lie."""
    return None if x is None else x.data_ptr()


@cache
def library() -> Library | None:
    """The kernels for this machine's CPU; None if none was compiled, or `ODENET_KERNELS` is 0."""
    if os.environ.get("ODENET_KERNELS", "1") == "0":
        return None
    of_arm = ("portable",) if platform.machine() in ARM else ()
    for name in BUILDS.get(torch.backends.cpu.get_cpu_capability(), of_arm):
        found = find_spec(f"odenet_lightning.kernels._conv_field_{name}")
        if found is not None and found.origin:
            try:
                return Library(name, found.origin)
            except (OSError, AttributeError):  # compiled for another system, or from another version
                continue
    return None


def wants_triton() -> bool:
    """Whether `ODENET_KERNELS=triton` asks for the kernels for GPUs, outside `torch.compile`."""
    return not torch.compiler.is_compiling() and os.environ.get("ODENET_KERNELS") == "triton"
