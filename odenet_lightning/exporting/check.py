"""Check that an exported file gives the network's predictions and logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from odenet_lightning.certificate import CHUNK
from odenet_lightning.exporting.formats import ExportError, Run
from odenet_lightning.exporting.graph import FromPixels
from odenet_lightning.models import Classifier

LARGEST_DIFFERENCE = 1e-5  # of a logit, relative to the largest logit


@dataclass(frozen=True)
class Agreement:
    """How a file's logits compare with the network's.

    Attributes:
        difference: largest difference of a logit over the largest logit.
        predicted: the network's predictions, `[N]`.
    """

    difference: float
    predicted: Tensor


@torch.no_grad()
def compare(net: Classifier, run: Run, pixels: Tensor) -> Agreement:
    """Compare the predictions and logits of the network and of the file.

    Raises:
        ExportError: they are not the same to rounding.
    """
    both = [(FromPixels(net)(chunk), run(chunk)) for chunk in pixels.split(CHUNK)]
    own, other = (torch.cat(logits) for logits in zip(*both, strict=True))
    difference = float((own - other).abs().max() / own.abs().max())
    changed = int((own.argmax(1) != other.argmax(1)).sum())
    if changed or not difference <= LARGEST_DIFFERENCE:
        raise ExportError(
            f"the file does not give the network's numbers: {changed} of {len(own)} predictions changed, logits differ "
            f"by up to {difference:.1e} of the largest; nothing was written"
        )
    return Agreement(difference, own.argmax(1))
