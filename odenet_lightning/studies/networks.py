"""Networks to study: from a checkpoint, or trained here."""

from dataclasses import dataclass
from functools import cached_property

from odenet_lightning.checkpoints import RefusedCheckpoint, checkpoint_file
from odenet_lightning.models import Classifier, OneBlock
from odenet_lightning.module import ClassifierModule
from odenet_lightning.studies.study import Study
from odenet_lightning.studies.training import trained_odenet


@dataclass
class TrainedBefore(Study):
    """A study that can take a network trained before.

    Args:
        ckpt_path: a checkpoint of `fit`, or the name of a trained network that comes with the package.
        trusted: a module or package of your own, whose classes the checkpoint may name; they are imported.
    """

    ckpt_path: str | None = None
    trusted: str | None = None

    @property
    def checkpoint(self) -> str | None:
        """The path of the trained network."""
        return str(checkpoint_file(self.ckpt_path)) if self.ckpt_path else None

    def loaded(self) -> Classifier | None:
        """The checkpoint's network, when one is given."""
        if not self.ckpt_path:
            return None
        net = ClassifierModule.load_from_checkpoint(self.ckpt_path, trusted=self.trusted).net.eval()
        if not net.ode_blocks:
            raise RefusedCheckpoint(f"{self.ckpt_path} holds a {type(net).__name__}, which has no ODE block to study")
        return net.to(self.device)


@dataclass
class OneNetwork(TrainedBefore):
    """A study that looks into one trained network with a single ODE block.

    Args:
        epochs: to train the post's network for, where no checkpoint is given.
    """

    epochs: int = 6

    @cached_property
    def network(self) -> OneBlock:
        """The checkpoint's, or the post's, trained here."""
        net = self.loaded() or trained_odenet(self, self.epochs)
        if not isinstance(net, OneBlock):
            raise RefusedCheckpoint(
                f"{self.ckpt_path} holds a {type(net).__name__}; this study looks into networks with one ODE block"
            )
        return net
