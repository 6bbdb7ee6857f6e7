"""What a run takes from a checkpoint: its settings, or its weights; and when a checkpoint is refused."""

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from odenet_lightning.checkpoints import checkpoint_name
from odenet_lightning.checkpoints.read import data_class, kept_data, kept_model, load_checkpoint
from odenet_lightning.checkpoints.trust import refuse_foreign
from odenet_lightning.cli.argv import DATA, CommandLine
from odenet_lightning.cli.errors import UsageError
from odenet_lightning.cli.layers import is_spec, same_class
from odenet_lightning.data import FolderDataModule
from odenet_lightning.module import ClassifierModule

FOLDERS = "odenet_lightning.FolderDataModule"


def of_checkpoint(path: str, line: CommandLine) -> dict[str, Any]:
    """The settings that a checkpoint brings along.

    Raises:
        UsageError: it names what the user does not, or was trained on other data.
    """
    checkpoint, path = load_checkpoint(path), checkpoint_name(path)
    model, data = kept_model(checkpoint.get("hyper_parameters", {})), kept_data(checkpoint)
    remedy = "give the config that it was trained with, too (--config FILE)"
    names = model.pop("class_names", None)  # texts of any kind, which nothing reads as class paths
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        model["class_names"] = names
    refuse_foreign({"model": {**model, "class_names": None}, "data": data}, path, line.trusted, remedy)
    resumes = line.command == "fit" and line.weights is None
    if resumes and not checkpoint.get("optimizer_states"):
        raise UsageError(
            f"{path} holds weights without the optimiser's state: no run can be resumed from it; {from_weights(path)}"
        )
    if line.weights:
        model = {key: value for key, value in model.items() if key in ("net", "class_names")}
    refuse_to_guess(path, model, line, ("net", "optimizer") if resumes else ("net",))
    hparams, kind = checkpoint.get("datamodule_hyper_parameters", {}), data_class(checkpoint)
    own = hparams.get("_class_path")
    if own and kind is None and not line.data_class:
        raise UsageError(f"{path} was trained on the data of {own}: name it, too (--data {own})")
    if not line.data_class and kind is None and "datamodule_hyper_parameters" not in checkpoint:
        rank_zero_warn(f"{path} does not say which data it was trained on: this run takes MNIST or its sample")
    augment = hparams.get("augment")
    if line.command == "fit" and isinstance(augment, str) and line.given("data", "augment") is None:
        rank_zero_warn(
            f"{path} was trained with {augment}, and does not say with which settings: this run takes the default "
            f"augmentation; to have the same, name it (--data.augment {augment})"
        )
    return {"model": model, **data_settings(kind, data, hparams.get("root"), line)}


def data_settings(kind: Any, data: dict[str, Any], root: Any, line: CommandLine) -> dict[str, Any]:
    """A checkpoint's settings of its data, unless the command line names other data.

    Args:
        kind: the data module's class, where it is this project's.
        data: its settings, without root.
        root: its folder, taken over for the user's own pictures only: they can be nowhere else.
        line: the command line.
    """
    if kind is FolderDataModule:
        named = line.data_class or (DATA if names_class(line.given("data")) else None)
        if named is None or same_class(named, FOLDERS):
            place = {"root": root} if isinstance(root, str) else {}
            return {"data": {"class_path": FOLDERS, "init_args": {**data, **place}}}
        return {}
    return {"data": {"init_args": data}} if data and not line.data_class else {}


def refuse_to_guess(path: str, model: dict[str, Any], line: CommandLine, wanted: tuple[str, ...]) -> None:
    """Refuse a checkpoint of a Trainer in plain Python, which does not say what it trained, unless the user does."""
    names = {"net": "network", "optimizer": "optimiser"}
    unknown = [key for key in wanted if model.get(key) is None and not names_class(line.given("model", key))]
    if unknown:
        flags = ", ".join(f"--model.{key} CLASS" for key in unknown)
        said = " and ".join(names[key] for key in unknown)
        raise UsageError(f"{path} does not say what its {said} is: name it and its settings ({flags}, or --config)")


def names_class(settings: Any) -> bool:
    """Whether settings name their class."""
    return isinstance(settings, str) or (isinstance(settings, dict) and "class_path" in settings)


def refuse_another(trained: dict[str, Any], given: dict[str, Any], path: str) -> None:
    """Refuse to resume with an optimiser or a schedule other than the one whose state the checkpoint holds."""
    for key, name in (("optimizer", "optimiser"), ("schedule", "schedule")):
        specs = (trained.get(key), given[key])
        one, other = (spec["class_path"] if isinstance(spec, dict) and is_spec(spec) else spec for spec in specs)
        if one is not None and not same_class(one, other):
            one, other = (str(text).rpartition(".")[2] for text in (one, other))
            raise UsageError(
                f"the checkpoint was trained with {one}, this run has {other}: resume with the same {name}, "
                f"or {from_weights(path)}"
            )


def from_weights(path: str) -> str:
    """What to do where a run cannot be resumed, or not for longer."""
    return f"train its weights on with a new optimiser and schedule (fit --weights {path})"


def load_weights(module: ClassifierModule, path: str) -> None:
    """Start a new run's module from the weights of a checkpoint, and its solves from its warm steps."""
    checkpoint = load_checkpoint(path)
    module.load_state_dict(checkpoint["state_dict"])
    module.on_load_checkpoint(checkpoint)
