"""File formats: a traced network as bytes, and a runtime for those bytes, to check them."""

import io
import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

Run = Callable[[Tensor], Tensor]  # pixels -> logits


class ExportError(RuntimeError):
    """A network that cannot be exported, or whose file gives other numbers."""


def as_program(program: ExportedProgram, notes: dict[str, str]) -> bytes:
    """torch.export's file (.pt2), with the notes in it as notes.json."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"notes.json": json.dumps(notes, indent=1)})
    return buffer.getvalue()


def run_program(content: bytes) -> Run:
    """Run the bytes of a .pt2 file."""
    module: Any = torch.export.load(io.BytesIO(content)).module()
    return lambda pixels: module(pixels)


def as_onnx(program: ExportedProgram, notes: dict[str, str]) -> bytes:
    """An ONNX model, with the notes as its metadata."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)} (a .pt2 file needs nothing more)"
        )
    with warnings.catch_warnings():  # deprecations within the exporter
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False)
    assert made is not None
    made.model.metadata_props.update(notes)
    return made.model_proto.SerializeToString()


def run_onnx(content: bytes) -> Run:
    """Run the bytes of an ONNX model in ONNX Runtime on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])


# by the ending of the file's name: how it is made, and how it is run
FORMATS: dict[str, tuple[Callable[[ExportedProgram, dict[str, str]], bytes], Callable[[bytes], Run]]] = {
    ".onnx": (as_onnx, run_onnx),
    ".pt2": (as_program, run_program),
}
