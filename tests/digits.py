"""MNIST's file format."""

import struct
from pathlib import Path

import torch
from torch import Tensor


def write_idx(path: Path, values: Tensor) -> None:
    """Write uint8 or int32 values in MNIST's file format."""
    kind = {torch.uint8: 8, torch.int32: 12}[values.dtype]
    header = struct.pack(f">HBB{values.dim()}I", 0, kind, values.dim(), *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.numpy().astype(">u1" if kind == 8 else ">i4").tobytes())
