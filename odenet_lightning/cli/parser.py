"""Changes to Lightning's parser: its errors, its help, and where it saves its config."""

from typing import Any, NoReturn

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from typing_extensions import override

from odenet_lightning.cli.errors import PROGRAM, UsageError, condense


class Parser(LightningArgumentParser):
    """Raises instead of printing its usage, so that every error ends in one line; takes no flag's abbreviation.

    `CommandLine` would not recognise an abbreviation, and so miss a checkpoint's settings and whether it is trusted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(condense(message)) from ex


class SavedConfig(SaveConfigCallback):
    """Saves the config beside a run's curves; a run without a folder of its own leaves none."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.logger is not None and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            super().setup(trainer, pl_module, stage)


def put_own_first(parser: LightningArgumentParser, command: str) -> None:
    """Have a command's help begin with this project's settings, and say where those of classes are."""
    parser.usage = f"{PROGRAM} {command} [--config FILE] [OPTIONS]"
    parser.description = (
        "This project's settings come first, Lightning's Trainer last. Those of a network, a solver, a gradient or "
        "another class: --model.net.help CLASS, --model.net.solver.help CLASS, --data.augment.help CLASS."
    )
    parser._action_groups.sort(key=lambda group: any(a.dest.startswith("trainer.") for a in group._group_actions))  # pyright: ignore[reportAttributeAccessIssue] -- a list
