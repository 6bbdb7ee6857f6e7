"""Trained networks that come with the package: weights and settings, named as `--ckpt_path NAME`."""

from pathlib import Path
from typing import Any

from odenet_lightning.data import MNISTDataModule

FOLDER = Path(__file__).parents[1] / "weights"

# what is kept of a checkpoint: no optimiser, counters of loops or random states, with which a run could be resumed
KEPT = (
    "pytorch-lightning_version",
    "epoch",
    "global_step",
    "state_dict",
    "hyper_parameters",
    "datamodule_hyper_parameters",
    MNISTDataModule.__qualname__,
    "val_acc",
    "warm_steps",
)
PLACES = ("root", "images")  # of the machine that it was trained on


def shipped_names() -> list[str]:
    """The names of the trained networks that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.ckpt"))


def checkpoint_file(name: str | Path) -> Path:
    """The file of a checkpoint: by the name of a trained network that comes with the package, else by its path.

    A file of your own with such a name goes by another way of writing its path (`./default`).
    """
    if isinstance(name, str) and name in shipped_names():
        return FOLDER / f"{name}.ckpt"
    path = Path(name)
    # written as a text again, ./default would lose what tells it from the name
    return path.absolute() if str(path) in shipped_names() else path


def checkpoint_name(path: str | Path) -> str:
    """What a checkpoint is called on the command line: the name of one that comes with the package, else its path."""
    path = Path(path)
    return path.stem if path.parent == FOLDER and path.stem in shipped_names() else str(path)


def weights_only(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's weights in float32 and the settings that made its network, without the state of its training."""
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    weights = checkpoint["state_dict"]
    kept["state_dict"] = {
        name: (value.float() if value.is_floating_point() else value).contiguous().clone()
        for name, value in weights.items()
    }
    data = kept.get("datamodule_hyper_parameters", {})
    kept["datamodule_hyper_parameters"] = {key: value for key, value in data.items() if key not in PLACES}
    return kept
