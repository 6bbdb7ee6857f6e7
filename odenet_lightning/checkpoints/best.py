"""BestCheckpoint: the best epoch's weights, also over resumed runs."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from odenet_lightning.checkpoints.atomic import CheckpointError, bring_along
from odenet_lightning.checkpoints.slurm import is_requeued

ACCURACY = "val/acc"


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which in a resumed run also remembers what was best before, and brings the file along.

    Lightning forgets it where the folder has changed, and would call the first epoch after the resume
    the best. Each checkpoint also keeps the validation accuracy (`val_acc`), whatever is monitored.

    Args:
        dirpath: folder of the files; by default that of the run.
        filename: name of the best one, without its ending.
        monitor: what is best in it: a name that is logged.
        mode: "max" or "min"; by default accuracies are to be large, and losses, errors and evaluations small.
        kwargs: Lightning's.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename, monitor, mode=mode or mode_of(monitor), **kwargs)
        self.fits, self.resumed_folder = False, None

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
        """Take over the earlier run's best files, where they are beside the checkpoint that is resumed.

        Where they once were is of no account: the folder may have moved, or the run may have begun elsewhere.
        """
        if not self.fits or self.dirpath is None or self.resumed_folder is None:
            return
        best, scores = state_dict["best_model_path"], state_dict.get("best_k_models", {})
        moved: dict[str, str] = {}
        for old in {*scores, best} - {""}:
            source = self.resumed_folder / os.path.basename(old)
            if source.is_file() and source.suffix == ".ckpt":
                # spelled as Lightning spells it, which removes a file of another spelling as an old one
                moved[old] = os.path.join(self.dirpath, source.name)
                if Path(moved[old]).resolve() != source:
                    bring_along(source, Path(moved[old]))
        if best not in moved:
            return
        self.best_model_path, self.best_model_score = moved[best], state_dict["best_model_score"]
        self.best_k_models = {moved[old]: score for old, score in scores.items() if old in moved}
        self.kth_best_model_path = moved.get(state_dict.get("kth_best_model_path", ""), self.best_model_path)
        self.kth_value = self.best_k_models.get(self.kth_best_model_path, state_dict["best_model_score"])  # pyright: ignore[reportAttributeAccessIssue] -- declared narrower than Lightning itself uses it

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the accuracy, for the summary of a run that monitors something else."""
        if ACCURACY in trainer.callback_metrics:
            checkpoint["val_acc"] = float(trainer.callback_metrics[ACCURACY])


def mode_of(monitor: str | None) -> Literal["min", "max"]:
    """Whether the best value of a metric is its largest or its smallest, by its name."""
    words = set(re.split(r"[^a-z]+", (monitor or "loss").lower()))
    if words & {"acc", "accuracy"}:
        return "max"
    if words & {"loss", "error", "nfe"}:
        return "min"
    raise ValueError(f"whether {monitor} should be large or small is not known: give --checkpoint.mode max or min")


def refuse_to_overwrite(folder: Path, resumed_folder: Path | None) -> None:
    """Refuse to overwrite the checkpoints of a run that is not being resumed."""
    earlier = next((name for name in ("last.ckpt", "best.ckpt") if (folder / name).is_file()), None)
    if earlier and folder.resolve() != resumed_folder and not is_requeued():
        raise CheckpointError(
            f"{folder} holds {earlier} of an earlier run: name another --checkpoint.dirpath, "
            f"or resume it (--ckpt_path {folder / earlier})"
        )
