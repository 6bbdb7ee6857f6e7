"""The graph of a network, its solver's steps unrolled and its pre-processing included."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from odenet_lightning.data import normalise
from odenet_lightning.models import Classifier


class FromPixels(nn.Module):
    """logits = net(pixels / 127.5 - 1), with uint8 pixels, grey `[B, H, W]` or in colour `[B, C, H, W]`."""

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, K]`."""
        return self.net(normalise(pixels))


def traced(net: Classifier, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """The network as a graph of PyTorch's operators, from pixels to logits, for any batch size.

    It does not suit solvers that choose their steps by the state: a graph has a fixed number of them. PyTorch's
    operators take the place of the C kernel while a network is traced.

    Args:
        net: the network, in evaluation mode, on the CPU, with fixed-step solvers only.
        image_shape: C, H and W of its images.
    """
    channels, *size = image_shape
    example = torch.zeros(2, *size if channels == 1 else image_shape, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(FromPixels(net), (example,), dynamic_shapes={"pixels": {0: Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program
