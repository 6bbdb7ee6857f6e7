"""Checkpoints: written whole or not at all, read as data, and one to resume from."""

from odenet_lightning.checkpoints.atomic import CheckpointError, WholeCheckpointIO, bring_along, written_whole
from odenet_lightning.checkpoints.best import BestCheckpoint
from odenet_lightning.checkpoints.last import LastCheckpoint
from odenet_lightning.checkpoints.read import load_checkpoint
from odenet_lightning.checkpoints.shipped import checkpoint_file, checkpoint_name, shipped_names, weights_only
from odenet_lightning.checkpoints.slurm import in_slurm, is_requeued, requeue, watch_for_preemption
from odenet_lightning.checkpoints.trust import RefusedCheckpoint

__all__ = [
    "BestCheckpoint",
    "CheckpointError",
    "LastCheckpoint",
    "RefusedCheckpoint",
    "WholeCheckpointIO",
    "bring_along",
    "checkpoint_file",
    "in_slurm",
    "is_requeued",
    "load_checkpoint",
    "requeue",
    "checkpoint_name",
    "shipped_names",
    "watch_for_preemption",
    "weights_only",
    "written_whole",
]
