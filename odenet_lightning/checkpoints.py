"""Checkpoints: written whole or not at all, read as data, and one to resume from."""

import io
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn

from odenet_lightning.module import REMEDY, DivergenceError

preempted = threading.Event()  # set by SIGUSR1 under SLURM


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written."""


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path beside the target to write to, which takes the target's place once it is written.

    Raises:
        CheckpointError: it cannot be written; nothing has changed.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    except OSError as e:
        partial.unlink(missing_ok=True)
        kept = "; the earlier one there is whole" if target.is_file() else ""
        raise CheckpointError(
            f"cannot write {target} ({e.strerror or e}){kept}: make room, then resume from the last checkpoint"
        ) from e


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill or a full disk leaves the earlier file as it was.

    Lightning's own writes to the system's folder for temporary files and moves from there, which on
    another disk is a copy that can end half-way. Reading never runs code (`weights_only`).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written; nothing has changed.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as partial, partial.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint as data, whatever `weights_only` says."""
        del weights_only
        return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only=True)


@rank_zero_only
def bring_along(source: Path, target: Path) -> None:
    """Copy a checkpoint, on one process."""
    with written_whole(target) as partial:
        shutil.copyfile(source, partial)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which in a resumed run also remembers what was best before, and brings the file along.

    Lightning forgets it where the folder has changed, and would call the first epoch after the resume
    the best.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note whether this is training: testing loads the callbacks' states, too."""
        super().setup(trainer, pl_module, stage)
        self.fits, self.resumed_folder = stage == "fit", None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note where a resumed run comes from; before its state is loaded."""
        if self.fits and trainer.ckpt_path and self.dirpath:
            self.resumed_folder = Path(trainer.ckpt_path).resolve().parent
            refuse_to_overwrite(Path(self.dirpath), self.resumed_folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new run does not write over an earlier one."""
        if self.resumed_folder is None and self.dirpath:
            refuse_to_overwrite(Path(self.dirpath), None)

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
    """Refuse to write over the checkpoints of a run that is not gone on with.

    Raises:
        CheckpointError: with what to do.
    """
    earlier = next((name for name in ("last.ckpt", "best.ckpt") if (folder / name).is_file()), None)
    if earlier and folder.resolve() != resumed_folder and not is_requeued():
        raise CheckpointError(
            f"{folder} holds {earlier} of an earlier run: name another --checkpoint.dirpath, "
            f"or go on from it (--ckpt_path {folder / earlier})"
        )


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, the state to resume from: after every epoch, within long ones, and before a preemption.

    Lightning's `ModelCheckpoint(save_last=True)` writes it only beside a new best one, so that a run
    resumed from it would repeat the epochs since.

    Under SLURM, SIGUSR1 (`#SBATCH --signal`) has it write the file, put the job back into the queue
    and end the run; the job's next start goes on from the file. Lightning's own handler saves in the
    middle of a step, between the processes' collective calls; this one waits for the step's end, so
    that the weights come out as in an undisturbed run.

    Args:
        every_n_train_steps: how often within an epoch; 0 for its end alone.
    """

    def __init__(self, every_n_train_steps: int = 1_000) -> None:
        if every_n_train_steps < 0:
            raise ValueError(f"every_n_train_steps must not be negative, not {every_n_train_steps!r}")
        self.every_n_train_steps = every_n_train_steps
        self.in_slurm = in_slurm()
        self.step = 0  # the last one seen

    @staticmethod
    def path(trainer: Trainer) -> Path | None:
        """Where it lies: beside the best one."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                # Lightning sets the folder only when the run starts
                folder = callback.dirpath or (Path(trainer.log_dir) / "checkpoints" if trainer.log_dir else None)
                return Path(folder) / "last.ckpt" if folder else None
        return None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where a resumed run begins."""
        self.step = trainer.global_step

    def _save(self, trainer: Trainer) -> None:
        path = self.path(trainer)
        check_finite(trainer)
        if path is not None and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            trainer.save_checkpoint(path, weights_only=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch, where gradients are not being added up; its last step is left to the epoch's end."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and not trainer.is_last_batch:
            self._save(trainer)
        # the signal reaches the processes at different steps: they must stop after the same one
        if self.in_slurm and not trainer.is_last_batch:
            self._requeue_if(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs: only now is the last one's train/acc written."""
        if self.in_slurm:
            self._requeue_if(trainer, saved=True)

    def _requeue_if(self, trainer: Trainer, saved: bool = False) -> None:
        if not trainer.strategy.reduce_boolean_decision(preempted.is_set(), all=False):
            return
        preempted.clear()
        if not saved:
            self._save(trainer)
        requeued = trainer.strategy.broadcast(requeue() if trainer.is_global_zero else False)
        if requeued:
            rank_zero_warn(f"preempted at step {trainer.global_step}: state kept in {self.path(trainer)}, job requeued")
            raise SystemExit(0)
        rank_zero_warn("preempted, but the job could not be requeued: going on until it is killed")


def in_slurm() -> bool:
    """Whether srun has started this process."""
    return "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ


def watch_for_preemption() -> None:
    """Note SIGUSR1, from the first moment on and before Lightning would take it."""
    if in_slurm():
        signal.signal(signal.SIGUSR1, lambda *_: preempted.set())


def check_finite(trainer: Trainer) -> None:
    """Refuse to keep weights that are no numbers over ones that are.

    Raises:
        DivergenceError: some are not finite.
    """
    for name, weight in trainer.lightning_module.named_parameters():
        if not weight.isfinite().all():
            raise DivergenceError(f"the weights {name} are not finite after step {trainer.global_step}: {REMEDY}")


def is_requeued() -> bool:
    """Whether this SLURM job has run before."""
    return in_slurm() and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue() -> bool:
    """Put this SLURM job back into the queue; returns whether that went well."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except OSError:
        return False
