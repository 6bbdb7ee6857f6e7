"""Checkpoints that are written whole or not at all."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from odenet_lightning.divergence import refuse_weights


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written."""


@contextmanager
def written_whole(target: Path, remedy: str = "make room, then resume from the last checkpoint") -> Iterator[Path]:
    """A path beside the target to write to, which takes the target's place once it is written.

    Args:
        target: the file.
        remedy: what to do when the disk is full.

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
        raise CheckpointError(f"cannot write {target} ({e.strerror or e}){kept}: {remedy}") from e


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill or a full disk leaves the earlier file as it was.

    Lightning's own writes to the system's folder for temporary files and moves from there, which on
    another disk is a copy that can end half-way. Reading never runs code (`weights_only`).
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written; nothing has changed.
            DivergenceError: its weights are NaN or infinite; nothing has changed.
        """
        refuse_weights(checkpoint.get("state_dict", {}), checkpoint.get("global_step", "?"))
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as partial, partial.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())

    @override
    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only=True)


@rank_zero_only
def bring_along(source: Path, target: Path) -> None:
    """Copy a checkpoint, on one process."""
    with written_whole(target) as partial:
        shutil.copyfile(source, partial)
