"""BestCheckpoint: the best epoch's weights, also over resumed runs."""

import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from odenet_lightning.checkpoints.atomic import CheckpointError, bring_along
from odenet_lightning.checkpoints.slurm import is_requeued


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which in a resumed run also remembers what was best before, and brings the file along.

    Lightning forgets it where the folder has changed, and would call the first epoch after the resume
    the best.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note whether this is training: testing loads the callbacks' states, too."""
        super().setup(trainer, pl_module, stage)
        self.fits, self.resumed_folder = stage == "fit", None

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note where a resumed run comes from; before its state is loaded."""
        if self.fits and trainer.ckpt_path and self.dirpath:
            self.resumed_folder = Path(trainer.ckpt_path).resolve().parent
            refuse_to_overwrite(Path(self.dirpath), self.resumed_folder)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new run does not write over an earlier one."""
        if self.resumed_folder is None and self.dirpath:
            refuse_to_overwrite(Path(self.dirpath), None)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the earlier run's best files, where they are still there."""
        if not self.fits:
            return
        earlier, own = state_dict.get("dirpath"), self.dirpath
        if own is None or earlier is None or Path(earlier) == Path(own):
            super().load_state_dict(state_dict)
            return
        moved: dict[str, str] = {}
        for old in {*state_dict.get("best_k_models", {}), state_dict["best_model_path"]} - {""}:
            # a checkpoint says where the best one is; only one beside itself is believed
            if (
                Path(old).is_file()
                and Path(old).suffix == ".ckpt"
                and Path(old).resolve().parent == self.resumed_folder
            ):
                # spelled as Lightning spells it, which removes a file of another spelling as an old one
                moved[old] = os.path.join(own, os.path.basename(old))
                bring_along(Path(old), Path(moved[old]))
        if state_dict["best_model_path"] not in moved:
            return
        self.best_model_path, self.best_model_score = (
            moved[state_dict["best_model_path"]],
            state_dict["best_model_score"],
        )
        scores = state_dict.get("best_k_models", {})
        self.best_k_models = {moved[old]: score for old, score in scores.items() if old in moved}
        self.kth_best_model_path = moved.get(state_dict.get("kth_best_model_path", ""), self.best_model_path)
        self.kth_value = self.best_k_models.get(self.kth_best_model_path, state_dict["best_model_score"])  # pyright: ignore[reportAttributeAccessIssue] -- declared narrower than Lightning itself uses it


def refuse_to_overwrite(folder: Path, resumed_folder: Path | None) -> None:
    """Refuse to overwrite the checkpoints of a run that is not being resumed.

    Raises:
        CheckpointError: with what to do.
    """
    earlier = next((name for name in ("last.ckpt", "best.ckpt") if (folder / name).is_file()), None)
    if earlier and folder.resolve() != resumed_folder and not is_requeued():
        raise CheckpointError(
            f"{folder} holds {earlier} of an earlier run: name another --checkpoint.dirpath, "
            f"or go on from it (--ckpt_path {folder / earlier})"
        )
