"""The LightningCLI of this project: its parser, its trainer, and what happens before and after each command."""

from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from odenet_lightning.callbacks import Evaluation, EvaluationCounts, IsODE, Pictures, Resume
from odenet_lightning.checkpoints import BestCheckpoint, LastCheckpoint, checkpoint_name, is_requeued
from odenet_lightning.checkpoints.restorable import OBJECTS
from odenet_lightning.cli.argv import CommandLine, bare_data
from odenet_lightning.cli.choices import drawn_seed
from odenet_lightning.cli.configs import defaults
from odenet_lightning.cli.endings import telling_what_is_left
from odenet_lightning.cli.errors import UsageError, named_in_errors
from odenet_lightning.cli.layers import arguments, flat, is_spec
from odenet_lightning.cli.parser import Parser, SavedConfig, put_own_first
from odenet_lightning.cli.report import complete, end_of_fit
from odenet_lightning.cli.resume import load_weights, of_checkpoint, refuse_another
from odenet_lightning.cli.shape import take_shape
from odenet_lightning.cli.trainer import trainer_settings
from odenet_lightning.data import ImageDataModule, MNISTDataModule
from odenet_lightning.module import ClassifierModule
from odenet_lightning.unsupported import refuse_spawning


class CLI(LightningCLI):
    """fit | validate | test | predict; `line` is the command line, taken apart, `kwargs` are LightningCLI's."""

    def __init__(self, line: CommandLine, **kwargs: Any) -> None:
        self.line = line
        # a checkpoint brings the model and the split it was trained with; configs and flags win, in this order
        source = line.checkpoint or line.weights
        self.trained = of_checkpoint(source, line) if source is not None else {}
        self.data_class = line.data_class or self.trained.get("data", {}).get("class_path")
        super().__init__(
            ClassifierModule,
            # any other data module goes by its class; the built-in one's settings have no class before them
            None if self.data_class else MNISTDataModule,
            parser_class=Parser,
            seed_everything_default=defaults()["seed_everything"],
            auto_configure_optimizers=False,
            save_config_callback=SavedConfig,
            # a requeued job continues in its own folder; no other run may write over one
            save_config_kwargs={"overwrite": is_requeued()},
            trainer_defaults={},
            args=[],
            **kwargs,
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one that is run: a parser for each of Lightning's four takes half of the start."""
        return {self.line.command: LightningCLI.subcommands()[self.line.command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for action in parser._actions:  # Lightning tries them as floats first, and takes 1 batch for 1.0, all of them
            if action.dest.startswith("trainer.limit_"):
                action._typehint = int | float | None  # pyright: ignore[reportAttributeAccessIssue]
        if self.line.command == "fit":
            told = "start a new run from this checkpoint's network and weights, with a new optimiser"
            parser.add_argument("--weights", type=str | None, help=told)
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(EvaluationCounts, "nfe")
        parser.add_lightning_class_args(IsODE, "is_ode")
        parser.add_lightning_class_args(Evaluation, "evaluation")
        put_own_first(parser, self.line.command)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the defaults, the checkpoint's settings, the configs and the flags, later ones over earlier ones."""
        command, path = self.line.command, self.line.checkpoint
        base, given = self.line.settings(self.trained)
        if command != "fit":
            given.pop("weights", None)  # of a run's config.yaml
        if not self.data_class:
            base, given = bare_data(base), bare_data(given)
        else:
            base.pop("data", None)
        # what is not named here any more was replaced by a class of the user's, which no default may reach
        gone = {key: None for key, value in flat(defaults()).items() if is_spec(value) and key != "data"}
        self._subcommand_parsers[command].set_defaults({**gone, **flat(base)})
        configs = [f"--config={yaml.safe_dump(given)}"] if given else []
        flags = [*self.line.parsed_flags, *(["--ckpt_path", path] if path is not None else [])]
        self.config = parser.parse_args([command, *configs, *flags])
        take_shape(self.config[command], command, is_trained=bool(self.trained))
        if path is not None and command == "fit":
            refuse_another(self.trained["model"], self.config.as_dict()["fit"]["model"], path)
        self.config[command].seed_everything = drawn_seed(self.config[command].seed_everything)

    @override
    def _parse_ckpt_path(self) -> None:
        """Lightning's own way, in which the checkpoint beats the flags, is replaced by `parse_arguments`."""

    @override
    def before_instantiate_classes(self) -> None:
        """Behind Lightning's own, which note the classes of the model and the data for the checkpoint."""
        self.parser.add_instantiator(named_in_errors, object)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A logger without stub metrics, a progress bar for terminals only, a length where none is given."""
        trainer = self._get(self.config_init, "trainer")
        own, self.trainer_defaults["callbacks"] = trainer_settings(trainer, self.subcommand)
        if trainer.enable_checkpointing is False:
            keys = self._parser(self.subcommand).callback_keys
            keys[:] = [key for key in keys if key not in ("checkpoint", "last")]
        checkpoint = self._get(self.config_init, "checkpoint")
        if checkpoint.save_top_k not in (0, 1) and checkpoint.filename == "best":
            checkpoint.filename = "best-{step}"  # several files need several names
        try:
            return super().instantiate_trainer(**kwargs, **own)
        except TypeError as error:  # so Lightning refuses some values
            raise UsageError(f"trainer: {error}") from error

    @override
    def after_instantiate_classes(self) -> None:
        """Keep the plain config of what is built from objects with the checkpoint."""
        self._dump_config()
        for key in OBJECTS:
            self.model.hparams[key] = self.config_dump["model"][key]
        if isinstance(self.datamodule, ImageDataModule):
            self.datamodule.hparams["augment"] = arguments(self.config_dump["data"])["augment"]

    def before_fit(self) -> None:
        """Say what is about to be trained."""
        refuse_spawning(self.trainer)
        net, weights = self.model.net, self.line.weights
        if weights is not None:
            load_weights(self.model, weights)
        if self.trainer.is_global_zero:
            begin = f", from the weights of {checkpoint_name(weights)}" if weights else ""
            print(f"training {type(net).__name__}, {net.num_params:,} parameters{begin}", flush=True)

    def after_fit(self) -> None:
        """Say where everything is and what to do next."""
        if self.trainer.is_global_zero:
            print(end_of_fit(self.trainer, self.model, self.datamodule), flush=True)

    def fit(self, model: ClassifierModule, **kwargs: Any) -> None:
        """Train; a requeued job goes on with its last checkpoint."""
        last = LastCheckpoint.path(self.trainer)
        if is_requeued() and last is not None and last.is_file():  # further on than what the job began with
            kwargs["ckpt_path"] = str(last)
        with telling_what_is_left(self.trainer):
            self.trainer.fit(model, **kwargs)
            if any(isinstance(c, Resume) and c.took_no_step(self.trainer) for c in self.trainer.callbacks):  # pyright: ignore[reportAttributeAccessIssue]
                rank_zero_warn(complete(self.trainer, model, self.line.checkpoint or str(last)))

    def before_predict(self) -> None:
        """Refuse to predict without pictures, or in several processes."""
        if isinstance(self.datamodule, ImageDataModule) and not self.datamodule.images:
            raise UsageError("predict needs your pictures, a folder or a file: --data.images DIR")
        if self.trainer.world_size > 1:
            raise UsageError("predict runs in one process: --trainer.devices 1")

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Lightning's table of results is left out: `TestReport` says it in a line."""
        self.trainer.test(model, **{**kwargs, "verbose": False})
