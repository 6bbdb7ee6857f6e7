"""Fields for the compiled kernels, the builds that this machine can run, and how far answers are apart."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from odenet_lightning.fields import ConvField

ROOT = Path(__file__).parents[1]
SUPPORTED = {"AVX512": ["avx512", "avx2", "portable"], "AVX2": ["avx2", "portable"]}
BUILDS = SUPPORTED.get(torch.backends.cpu.get_cpu_capability(), ["portable"])
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")


def flags(name: str) -> list[str]:
    """The compiler's flags that pyproject.toml gives for a build."""
    found = re.search(
        rf"_conv_field_{name}\"\n.*\nextra-compile-args = \[(.*)\]", (ROOT / "pyproject.toml").read_text()
    )
    assert found is not None
    return re.findall(r"\"([^\"]*)\"", found[1])


def made(channels: int, seed: int = 0) -> ConvField:
    """A field whose norm scales and shifts."""
    torch.manual_seed(seed)
    field = ConvField(channels)
    nn.init.normal_(field.norm.weight)
    nn.init.normal_(field.norm.bias)
    return field


def in_double(field: ConvField) -> ConvField:
    """A copy in float64, which no kernel evaluates."""
    return copy.deepcopy(field).double()


def off_by(found: Tensor | None, truth: Tensor | None) -> float:
    """Distance in units of the truth's size."""
    assert found is not None
    assert truth is not None
    found, truth = found.detach().double(), truth.detach()
    return float((found - truth).norm() / truth.norm().clamp_min(1e-3))


def is_fused(output: Tensor) -> bool:
    """Whether the kernel made it."""
    return output.grad_fn is not None and "ConvFieldStep" in output.grad_fn.name()


ZERO = torch.zeros(())
