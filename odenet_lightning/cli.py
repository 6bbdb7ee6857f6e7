"""The command line: LightningCLI with this project's defaults, reports, and errors in one line."""

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odenet_lightning.allocator import keep_freed_memory
from odenet_lightning.arguments import (
    PROGRAM,
    UsageError,
    checkpoint_path,
    foreign_texts,
    kept_data,
    kept_model,
    load_checkpoint,
    names_a_network,
    refuse_foreign_classes,
)
from odenet_lightning.callbacks import (
    EpochLines,
    EvaluationCounts,
    EventFile,
    Pictures,
    PredictionWriter,
    Resume,
    TestReport,
    Throughput,
    datamodule,
)
from odenet_lightning.checkpoints import (
    BestCheckpoint,
    CheckpointError,
    LastCheckpoint,
    RefusedCheckpoint,
    WholeCheckpointIO,
    in_slurm,
    is_requeued,
    watch_for_preemption,
)
from odenet_lightning.data import MNISTDataModule
from odenet_lightning.divergence import DivergenceError
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import SolverError
from odenet_lightning.studies import STUDIES, run
from odenet_lightning.unsupported import refuse_spawning

DESCRIPTION = f"Neural ODE classifiers. Besides: '{PROGRAM} study NAME' answers a question in rows and a figure."
DEBUG = "ODENET_DEBUG"  # environment variable: show tracebacks

# epochs of a run that is given no length: about as many steps as pay on a full set and on the sample
FULL_EPOCHS = 4
DEFAULT_EPOCHS = {"sample": 30}

# the quick recipe's network: at the post's tolerance Bosh3 needs 4 evaluations where Dopri5 needs 7,
# and the time is better spent on more steps. Spelled out so that a flag can change single values.
DEFAULT_NET = {
    "class_path": "odenet_lightning.models.ODENet",
    "init_args": {
        "solver": {
            "class_path": "odenet_lightning.solvers.Bosh3",
            "init_args": {"rtol": 0.1, "atol": 0.1, "first_step": "warm"},
        },
        "gradient": {"class_path": "odenet_lightning.gradients.Backprop"},
    },
}


class Parser(LightningArgumentParser):
    """Raises instead of printing its usage, so that every error ends in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `UsageError` with what matters of the message."""
        raise UsageError(condense(message)) from ex


# what jsonargparse says of a union's branches without helping a reader
NOISE = ("Does not validate", "Expected a NoneType", "Expected a path", "Given value", "Subtypes")

# what it says of classes, as what to do about it; a class that was meant beats the other branches of its union
CLASS_HINTS = {
    r"Expected a dot import path string: ([A-Z]\w*)": r"no class '\1' is known: 'fit --help' lists this project's, "
    "and your own goes by its path (mine.MyClass)",
    r"Expected an instantiatable class, but .* is abstract": "its settings need its class before them",
}


def condense(message: str) -> str:
    """Jsonargparse's report of a failed parse, a tree over several lines, as the path to its most telling leaf."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", " ".join(message.split()))
    if not re.search(r"Does not validate| - Expected ", text):
        return text
    keys: list[str] = []
    leaves: list[tuple[int, str]] = []  # each with its depth
    for part in re.split(r"(?:^|\s)-\s|Errors:|(?=Given value)", text):
        part = re.sub(r"Problem with given class_path '[^']*':", "", part).strip()
        while key := re.match(r'Parser key "([^"]+)":\s*', part):
            keys.append(key.group(1))
            part = part[key.end() :]
        if part and not part.startswith(NOISE):
            depth = len(keys) + bool(re.match(r"[\w.]+: ", part))
            leaves.append((depth, f"{'.'.join(keys)}: {part}" if keys else part))
    for _, leaf in leaves:
        for pattern, hint in CLASS_HINTS.items():
            if re.search(pattern, leaf):
                return re.sub(pattern, hint, leaf)
    # the deepest: what is wrong with an option of the class that was meant, not that it is no bool
    return max(leaves, key=lambda leaf: leaf[0], default=(0, ""))[1]


class RunLength(Callback):
    """Gives a run without a length one that suits its digits (`DEFAULT_EPOCHS`)."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The digits are known now, the schedule is not yet made."""
        if stage == "fit":
            data = datamodule(trainer)
            trainer.fit_loop.max_epochs = DEFAULT_EPOCHS.get(data.digits_used or "", FULL_EPOCHS) if data else -1


class CLI(LightningCLI):
    """fit | validate | test | predict."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints and pictures get flags of their own; the network's parts can be set one by one."""
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(EvaluationCounts, "nfe")
        parser.set_defaults(
            {
                "model.net": DEFAULT_NET,
                "checkpoint.monitor": "val/acc",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """A checkpoint brings the model and the split it was trained with; flags and configs still win."""
        given = list(sys.argv[1:] if args is None else args) if not isinstance(args, dict | Namespace) else None
        if given is None:
            super().parse_arguments(parser, args)
            return
        subcommand = self._subcommand_parsers.get(next((a for a in given if a in self.subcommands()), ""), parser)
        if subcommand is not parser and names_a_network(given):
            # or else values of the default class would follow the user to another one that has the same names
            subcommand.set_defaults({"model.net": None})
        path = checkpoint_path(given)
        if path is not None:
            checkpoint = load_checkpoint(path)
            model = kept_model(checkpoint.get("hyper_parameters", {}))
            if names_a_network(given):
                model.pop("net", None)
            data = kept_data(checkpoint)
            refuse_foreign_classes({"model": model, "data": data}, path, given)
            if model:
                if subcommand is parser:
                    parser.error(f"expected one of {', '.join(self.subcommands())}")
                subcommand.set_defaults({f"model.{key}": value for key, value in model.items()})
                subcommand.set_defaults({f"data.{key}": value for key, value in data.items()})
        elif (
            given
            and given[0] in ("validate", "test", "predict")
            and not {"-h", "--help", "--print_config"} & set(given)
        ):
            raise UsageError(f"{given[0]} needs a trained network: --ckpt_path FILE (a fit prints its own)")
        self.config = parser.parse_args(given)
        if path is not None:  # a run's own config.yaml behind the flag says null
            self.config[self.config.subcommand].ckpt_path = path

    def _parse_ckpt_path(self) -> None:
        """Lightning's own way, in which the checkpoint beats the flags, is replaced by `parse_arguments`."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A logger without stub metrics, a progress bar for terminals only, a length where none is given."""
        trainer = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = [
            Resume(),
            Throughput(),
            EventFile(),
            TestReport(),
            PredictionWriter(),
        ]
        if trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                save_dir=trainer.default_root_dir or ".",
                name="lightning_logs",
                version=self._version(trainer.default_root_dir or "."),
                default_hp_metric=False,
            )
        if trainer.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        if not kwargs.get("enable_progress_bar", trainer.enable_progress_bar):
            callbacks.append(EpochLines())
        if trainer.enable_model_summary is None:
            kwargs["enable_model_summary"] = False
        if trainer.max_epochs is None and trainer.max_steps == -1:
            kwargs["max_epochs"] = -1
            callbacks.append(RunLength())
        self.trainer_defaults["callbacks"] = callbacks
        plugins = trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpointIO()]
        if trainer.enable_checkpointing is False:
            keys = self._parser(self.subcommand).callback_keys
            keys[:] = [key for key in keys if key not in ("checkpoint", "last")]
        checkpoint = self._get(self.config_init, "checkpoint")
        if checkpoint.save_top_k not in (0, 1) and checkpoint.filename == "best":
            checkpoint.filename = "best-{step}"  # several files need several names
        return super().instantiate_trainer(**kwargs)

    def _version(self, root: str) -> str | None:
        """A SLURM job's own number for its fit, to be found again when it is requeued; else the next free number."""
        job = os.environ.get("SLURM_JOB_ID")
        if job is None or self.subcommand != "fit" or not in_slurm():
            return None
        taken = (Path(root) / "lightning_logs" / job / "config.yaml").is_file()
        return job if is_requeued() or not taken else None

    def after_instantiate_classes(self) -> None:
        """Keep the plain config of what is built from objects with the checkpoint."""
        self._dump_config()
        for key in ("net", "optimizer"):
            self.model.hparams[key] = self.config_dump["model"][key]
        self.datamodule.hparams["augment"] = self.config_dump["data"]["augment"]

    def before_fit(self) -> None:
        """Say what is about to be trained."""
        refuse_spawning(self.trainer)
        net = self.model.net
        if self.trainer.is_global_zero:
            print(f"training {type(net).__name__}, {net.num_params:,} parameters", flush=True)

    def after_fit(self) -> None:
        """Say where everything is and what to do next."""
        trainer = self.trainer
        if not trainer.is_global_zero:
            return
        best, score = best_checkpoint(trainer)
        data = self.datamodule
        again = f" --data.root {data.root}" if str(data.root) != "data" else ""
        again += f" --data.source {data.source}" if data.source != "auto" else ""
        logger = trainer.logger
        rows = [
            (
                "digits",
                f"{data.digits_used} ({len(data.parts['train']):,} to train, {len(data.parts['val']):,} to validate)",
            ),
            ("trained", f"{trainer.current_epoch} epochs, {trainer.global_step:,} steps"),
            ("best val/acc", f"{score:.2%}" if score is not None else "none"),
            ("best checkpoint", os.path.relpath(best) if best else "none"),
        ]
        if isinstance(logger, TensorBoardLogger):
            rows.append(("curves", f"tensorboard --logdir {os.path.relpath(logger.root_dir)}"))
        if best:
            given = f"--ckpt_path {os.path.relpath(best)}"
            settings = [kept_model(dict(self.model.hparams)), data.hparams["augment"]]
            # classes of the user's own are imported only where the user names them
            if foreign_texts(settings, set()) and isinstance(logger, TensorBoardLogger):
                given = f"--config {os.path.relpath(Path(logger.log_dir) / 'config.yaml')} {given}"
            rows.append(("test it", f"{PROGRAM} test {given}{again}"))
            rows.append(("read your own", f"{PROGRAM} predict {given} --data.images DIR"))
        print("\n" + "\n".join(f"{name:<16} {value}" for name, value in rows), flush=True)

    def fit(self, model: ClassifierModule, **kwargs: Any) -> None:
        """Train; where that fails, say which checkpoint is left."""
        last = LastCheckpoint.path(self.trainer)
        if is_requeued() and last is not None and last.is_file():  # further on than what the job began with
            kwargs["ckpt_path"] = str(last)
        try:
            self.trainer.fit(model, **kwargs)
        except (SolverError, DivergenceError, CheckpointError) as error:
            kept, _ = best_checkpoint(self.trainer)
            left = f"the best checkpoint so far is {os.path.relpath(kept)}" if kept else "there is no checkpoint yet"
            raise type(error)(f"{error}; {left}") from error
        except SystemExit as end:  # so Lightning ends: with 0 after a SIGTERM, with 1 after Ctrl-C
            code = 143 if isinstance(end, SIGTERMException) else 130 if end.code == 1 else None
            if code is None:  # a preempted job
                raise
            if self.trainer.is_global_zero:
                last = LastCheckpoint.path(self.trainer)
                left = f"--ckpt_path {os.path.relpath(last)}" if last is not None and last.is_file() else ""
                left = f"the same command with {left} goes on" if left else "there is no checkpoint yet"
                print(f"interrupted at step {self.trainer.global_step:,}: {left}", file=sys.stderr, flush=True)
            raise SystemExit(code) from None

    def before_predict(self) -> None:
        """Predicting needs pictures."""
        if self.datamodule.images is None:
            raise UsageError("predict needs a folder of PNG or JPEG digits: --data.images DIR")
        if self.trainer.world_size > 1:
            raise UsageError("predict runs in one process: --trainer.devices 1")

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Lightning's table of results is left out: `TestReport` says it in a line."""
        self.trainer.test(model, **{**kwargs, "verbose": False})


def study(args: list[str]) -> None:
    """`study NAME`: measure, draw, print."""
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # for runs of several processes
    parser = Parser(prog=f"{PROGRAM} study", description="Answer a question in rows and a figure.")
    commands = parser.add_subcommands(metavar="NAME")
    for name, kind in STUDIES.items():
        # the first line of its file is its question
        question = (sys.modules[kind.__module__].__doc__ or "").splitlines()[0]
        command = Parser(description=question)
        command.add_argument("--config", action="config", help="a YAML with settings")
        command.add_argument("--quick", action="store_true", help="a small version, on the sample, in under a minute")
        command.add_argument("--folder", type=str | None, help="where its files go (lightning_logs/study-NAME)")
        command.add_class_arguments(kind)
        if "--quick" in args:
            command.set_defaults({"source": "sample", **kind.quick})
        commands.add_subcommand(name, command, help=question)
    chosen = parser.parse_args(args)
    settings = chosen[chosen.subcommand].as_dict()
    settings.pop("config")
    quick, folder = settings.pop("quick"), settings.pop("folder")
    if quick and "--quick" not in args:  # a config says so: parse again, with the small version's defaults
        study([*args, "--quick"])
        return
    folder = folder or f"lightning_logs/study-{chosen.subcommand}{'-quick' if quick else ''}"
    try:
        run(STUDIES[chosen.subcommand](**settings), Path(folder))
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning ends by the latter, with 0 after a SIGTERM
        print(f"interrupted: the rows so far are in {folder}; the same command goes on", file=sys.stderr)
        raise SystemExit(143 if isinstance(end, SIGTERMException) else 130) from None


def best_checkpoint(trainer: Trainer) -> tuple[str, float | None]:
    """The best checkpoint's path and what it is best in; else the last one's, else nothing."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path and callback.monitor:
            score = callback.best_model_score
            return callback.best_model_path, None if score is None else float(score)
    last = LastCheckpoint.path(trainer)
    return (str(last), None) if last is not None and last.is_file() else ("", None)


def quieten() -> None:
    """Silence what Lightning says at every start and what does not hold here."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    # the best checkpoint's state is brought along all the same
    warnings.filterwarnings("ignore", message=".*The dirpath has changed from.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # third parties' deprecations are theirs to mend
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*treespec.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*smaller than the logging interval.*")
    warnings.showwarning = show_warning


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as a person reads it: without the line of source that raised it."""
    text = str(message).strip()
    print(text if text.startswith("***") else f"warning: {text}", file=sys.stderr, flush=True)


def explain(error: BaseException) -> str:
    """An error in one line."""
    text = condense(str(error))
    if "Error(s) in loading state_dict" in text:
        return f"the checkpoint does not fit the network of this config ({text.split(':', 2)[-1].strip()[:160]} ...)"
    if re.search(r"gloo/transport|NCCL (error|communicator)", text):
        return (
            "another process of this run has ended, or cannot be reached: see its own error; "
            "what was trained is in last.ckpt, and --ckpt_path goes on from there"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, RuntimeError | ValueError | MisconfigurationException) and text:
        return text
    return f"{type(error).__name__}: {text} (unexpected; set {DEBUG}=1 to see where it was raised)"


def main(args: ArgsType = None) -> None:
    """Run the command line; errors end in one line and exit code 1 (2 for a wrong call)."""
    quieten()
    keep_freed_memory()
    watch_for_preemption()
    given = list(sys.argv[1:] if args is None else args) if not isinstance(args, dict | Namespace) else []
    try:
        if given[:1] == ["study"]:
            study(given[1:])
            return
        CLI(
            ClassifierModule,
            MNISTDataModule,
            parser_class=Parser,
            parser_kwargs={"prog": PROGRAM, "description": DESCRIPTION},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # a requeued job goes on in its own folder; no other run may write over one
            save_config_kwargs={"overwrite": is_requeued()},
            trainer_defaults={},
            args=args,
        )
    except Exception as e:
        if os.environ.get(DEBUG):
            raise
        print(f"error: {explain(e)}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(e, UsageError | RefusedCheckpoint) else 1) from None
