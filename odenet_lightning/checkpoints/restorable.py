"""Restorable: a LightningModule that its checkpoint alone is enough to make again, on any machine."""

from pathlib import Path
from typing import Any

from lightning import LightningModule
from typing_extensions import Self, override

from odenet_lightning.block import set_warm_steps, warm_steps
from odenet_lightning.checkpoints.read import TRAIN_ONE, load_checkpoint, rebuild
from odenet_lightning.checkpoints.trust import RefusedCheckpoint
from odenet_lightning.models import Classifier

OBJECTS = ("net", "optimizer", "regularizer")  # arguments whose config a checkpoint keeps


class Restorable(LightningModule):
    """A module made of `net`, `optimizer` and `regularizer`, whose checkpoints keep the config that made them.

    Beside the weights a checkpoint keeps the warm steps of the network's ODE blocks.
    """

    net: Classifier

    @classmethod
    @override
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride] -- a path, no open file
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        trusted: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """The module of a checkpoint that `fit` has written, with its network, weights, optimiser and regularizer.

        Args:
            checkpoint_path: the file.
            map_location: where its tensors and the module go.
            hparams_file: Lightning's; refused, as the checkpoint keeps its own config.
            strict: whether the weights must be all of the network's; by default the module's `strict_loading`.
            weights_only: Lightning's; false is refused, as no checkpoint may run code.
            trusted: a module or package of your own, whose classes the checkpoint may name; they are imported.
            kwargs: arguments of the constructor that replace the checkpoint's.

        Raises:
            RefusedCheckpoint: it cannot be read, does not say what its network is, or names a class not trusted.
            ValueError: a setting of Lightning's that is refused.
        """
        if weights_only is False:
            raise ValueError("checkpoints are loaded as data only, so that none can run code: leave weights_only out")
        if hparams_file is not None:
            raise ValueError("a checkpoint keeps its own config: leave hparams_file out, and give changes as arguments")
        checkpoint = load_checkpoint(checkpoint_path, map_location)
        kept = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key[:1] != "_"}
        wanted = [key for key in OBJECTS if key not in kwargs]
        remedy = "name its module (trusted='MODULE', --trusted MODULE), or give the network (net=...)"
        made = rebuild(checkpoint_path, checkpoint, trusted, remedy, wanted)
        if "net" not in made | kwargs:
            raise RefusedCheckpoint(
                f"{checkpoint_path} does not say what its network is: give it (net=...), or {TRAIN_ONE}"
            )
        plain = {key: value for key, value in kept.items() if key not in OBJECTS}
        module = cls(**{**plain, **made, **kwargs})
        weights = checkpoint["state_dict"]
        if weights:
            module.to(next(iter(weights.values())).device)
        module.load_state_dict(weights, strict=module.strict_loading if strict is None else strict)
        module.on_load_checkpoint(checkpoint)
        module.hparams.update({key: kept[key] for key in made})
        return module

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["warm_steps"] = warm_steps(self.net)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None:  # Lightning does so after it has loaded, and rounded, the weights
            self._trainer.precision_plugin.convert_module(self)
        set_warm_steps(self.net, checkpoint.get("warm_steps", []))
