import csv
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import odenet_lightning
from odenet_lightning import ClassifierModule
from odenet_lightning.callbacks import Throughput
from odenet_lightning.checkpoints.trust import foreign_texts
from odenet_lightning.cli import main
from odenet_lightning.cli.app import CLI
from odenet_lightning.cli.argv import split
from odenet_lightning.cli.choices import drawn_seed
from odenet_lightning.cli.configs import defaults
from odenet_lightning.cli.errors import PROGRAM, UsageError, condense
from odenet_lightning.data import load_sample
from tests.helpers import fails

DOPRI5 = ["--model.net.solver", "Dopri5"]
QUICK = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "2"]
SAMPLE = ["--data.source", "sample"]
FEW = [*QUICK, "--data.batch_size", "64", "--trainer.limit_train_batches", "60", "--trainer.log_every_n_steps", "10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sample_root: Path) -> Path:
    """A finished run's folder, made once; tests work on copies or only read."""
    folder = tmp_path_factory.mktemp("run")
    before = Path.cwd()
    os.chdir(folder)
    try:
        main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *FEW])
    finally:
        os.chdir(before)
    return folder / "lightning_logs" / "version_0"


def test_fit_leaves_everything_a_person_needs(run: Path) -> None:
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run / "config.yaml").is_file()
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    scalars = {"train/loss", "train/acc", "val/loss", "val/acc", "nfe/forward", "nfe/val_forward", "lr"}
    assert scalars | {"perf/images_per_second"} <= set(events.Tags()["scalars"])
    assert "hp_metric" not in events.Tags()["scalars"]
    assert set(events.Tags()["images"]) == {"val/confusion", "val/misclassified", "val/feature_maps"}
    assert [event.step for event in events.Images("val/confusion")] == [59, 119]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(9, 120, 10))
    assert "_hparams_/session_start_info" in events.Tags()["tensors"] or events.summary_metadata


def test_hyperparameters_say_which_digits(run: Path) -> None:
    metadata = EventAccumulator(str(run)).Reload().summary_metadata
    start = metadata["_hparams_/session_start_info"].plugin_data.content
    for part in (b"data.digits_used", b"sample", b"num_params", b"net.init_args.channels"):
        assert part in start
    columns = EventAccumulator(str(run)).Reload().summary_metadata["_hparams_/experiment"].plugin_data.content
    places = [columns.index(name) for name in (b"network", b"solver", b"gradient", b"optimizer", b"lr", b"schedule")]
    assert places == sorted(places), "the first columns of the table"
    experiment = metadata["_hparams_/experiment"].plugin_data.content
    assert b"val/acc" in experiment


def test_fit_ends_with_commands_that_run(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--trainer.limit_train_batches", "30", "--pictures.every_n_epochs", "0"]
    main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *QUICK, *few])
    out = capsys.readouterr().out
    assert "epoch 2  step 60" in out, "a plain line per epoch where there is no terminal"
    commands = [
        line.split("python -m odenet_lightning ", 1)[1].split() for line in out.splitlines() if "python -m" in line
    ]
    assert [command[0] for command in commands] == ["test", "predict"]
    main([*commands[0], "--trainer.accelerator", "cpu"])
    assert "test images of sample" in capsys.readouterr().out
    assert (workdir / "lightning_logs").is_dir()


def test_test_uses_the_checkpoints_model_and_flags_win(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        "test",
        "--data.source",
        "sample",
        "--data.root",
        str(sample_root),
        "--ckpt_path",
        str(run / "checkpoints/best.ckpt"),
    ]
    main(call)
    assert "Accuracy on 500 test images of sample: " in capsys.readouterr().out
    assert not (workdir / "lightning_logs").exists(), "a test is no run among the others"
    solvers = []
    for flags in ([], ["--model.net.solver", "RK4", "--model.net.solver.num_steps", "3"]):
        with pytest.raises(SystemExit):
            main([*call, *flags, "--print_config"])
        solvers.append(yaml.safe_load(capsys.readouterr().out)["model"]["net"]["init_args"]["solver"])
    assert solvers[0]["class_path"].endswith("Midpoint")
    assert solvers[1] == {
        "class_path": "odenet_lightning.solvers.RK4",
        "init_args": {"num_steps": 3, "step_size": None},
    }


@pytest.mark.filterwarnings("default:no step was taken")
def test_without_a_logger_as_often_as_wanted(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", *SAMPLE, "--data.root", str(sample_root), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    once = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    main([*fit, *once, "--trainer.enable_checkpointing", "false"])
    main([*fit, *once, "--trainer.enable_checkpointing", "false"])
    main([*fit, "--trainer.fast_dev_run", "1"])
    assert not list(workdir.rglob("config.yaml"))


def test_help_begins_with_this_projects_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    order = [
        text.index(part) for part in ("--model.net.help CLASS", "--data.root", "--checkpoint.monitor", "--trainer.")
    ]
    assert order == sorted(order)
    assert text.index("--trainer.") > text.index("--is_ode.images")


def test_a_narrower_checkpoint_needs_no_flags(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--data.source", "sample", "--data.root", str(sample_root)]
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
    main(["fit", *source, *QUICK, *few, "--model.net.channels", "2"])
    main(["validate", *source, "--ckpt_path", "lightning_logs/version_0/checkpoints/best.ckpt", *few[2:4]])
    module = ClassifierModule.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
    assert module.num_params == 3_456


def score_of(checkpoint: dict[str, Any]) -> torch.Tensor:
    """The metric by which the best checkpoint is chosen."""
    return next(state for name, state in checkpoint["callbacks"].items() if "val/acc" in name)["best_model_score"]


@pytest.mark.filterwarnings("default:no step was taken")
def test_resuming_continues_in_a_new_folder(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, workdir / "lightning_logs/version_0")
    before = {path: path.stat().st_mtime_ns for path in (workdir / "lightning_logs/version_0").rglob("*")}
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    resume = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    main(["fit", *SAMPLE, "--data.root", str(sample_root), *FEW, *resume])
    told = capsys.readouterr()
    assert "no step was taken: the checkpoint's run is complete" in told.err
    assert f"best val/acc     {float(score_of(checkpoint)):.2%}" in told.out, (
        "it is remembered, and the file brought along"
    )
    assert (workdir / "lightning_logs/version_1/checkpoints/best.ckpt").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in before}, "an earlier run's files were touched"
    assert (workdir / "lightning_logs/version_1").is_dir()


def test_predict_writes_a_table_and_a_sheet(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_sample(sample_root)
    (workdir / "mine").mkdir()
    for index in range(0, 5_000, 250):
        name = f"{int(digits.labels[index])}_{index}.png"
        Image.fromarray(255 - digits.images[index].numpy()).resize((90, 90)).convert("RGB").save(
            workdir / "mine" / name
        )
    (workdir / "mine" / "broken.png").write_text("")
    main(["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--data.images", "mine"])
    captured = capsys.readouterr()
    assert "20 pictures classified, 1 skipped" in captured.out
    assert "skipped 'broken.png': not a picture" in captured.err
    with (workdir / "lightning_logs/version_0/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    right = sum(Path(row["file"]).name[0] == row["prediction"] for row in rows)
    assert right >= 16, "dark on light, three times as large: still the same digits"
    assert all(0.1 <= float(row["confidence"]) <= 1.0 for row in rows)
    with Image.open(workdir / "lightning_logs/version_0/predictions.png") as sheet:
        assert sheet.size[0] > 300


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fit", "--trainer.max_epoch", "2x"], "trainer.max_epoch"),
        (["fit", "--no_such_flag", "1"], "no_such_flag"),
        (["fit", "--model.net", "NoSuchNet"], "model.net: no class 'NoSuchNet' is known: 'fit --help' lists"),
        (["fit", "--model.net.solver", "mine.X"], "solver: No module named 'mine'"),
        (["fit", "--model.net.solver", "odenet_lightning.solvers.X"], "has no attribute 'X'"),
        (["fit", "--model.net.channels", "2", "--model.net", "ODENet"], "its settings need its class before them"),
        (["fit", "--model.optimizer", "AdamW", "--model.optimizer.lr", "x"], "lr: Expected a float"),
        (["fit", "--data.augment", "Foo"], "data.augment: no class 'Foo' is known"),
        (["fit", "--data.augment", "Deform", "--data.augment.degrees", "x"], "degrees: Expected a float. Got value: x"),
        (["fit", "--model.net", "torch.nn.Linear"], "subclass of Classifier"),
        (["fit", "--model.net.channels", "0"], "channels must be a whole number of at least 1, not 0"),
        (["fit", "--model.net.channels", "-2"], "channels must be"),
        (["fit", "--model.net.channels", "six"], "channels: Expected a int. Got value: six"),
        (
            ["fit", *DOPRI5, "--model.net.solver.rtol", "0"],
            "rtol must be a positive number, not 0",
        ),
        (
            ["fit", *DOPRI5, "--model.net.solver.atol=-1e-3"],
            "atol must be a positive number, not -0.001",
        ),
        (
            ["fit", *DOPRI5, "--model.net.solver.rtol", "tight"],
            "rtol: Expected a float. Got value: tight",
        ),
        (["fit", "--model.net.solver", "Euler"], "give num_steps or step_size"),
        (["fit", "--model.net.gradient", "Adjoint", "--model.net.gradient.rtol", "0"], "rtol must be"),
        (["fit", "--model.net.gradient.rtol", "1e-3"], "Option 'rtol' is not accepted"),
        (["fit", "--model.schedule", "linear"], "'constant', 'one_cycle', 'cosine'"),
        (["fit", "--data.batch_size", "0"], "batch_size must be"),
        (["fit", "--data.batch_size", "4.5"], 'data.batch_size": Expected a int'),
        (["fit", "--data.source", "sample", "--data.batch_size", "4001"], "4000 training images"),
        (["fit", "--data.source", "mnist"], "data/MNIST/raw"),
        (["fit", "--config", "none.yaml"], "none.yaml"),
        (["train"], "no command 'train'"),
        (["test"], "--ckpt_path FILE"),
        (["test", "--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
        (["test", "--ckpt_path", "text.ckpt"], "text.ckpt is not a checkpoint that can be read"),
        (["test", "--ckpt_path", "foreign.ckpt"], "foreign.ckpt is not a Lightning checkpoint"),
        (["test", "--ckpt_path=cut.ckpt"], "cut.ckpt is not a checkpoint that can be read"),
        (["test", "--ckpt_path", "code.ckpt"], "code.ckpt is refused"),
        (["test", "--ckpt_path", "pickle.ckpt"], "pickle.ckpt is not a checkpoint that can be read"),
        (["test", "--ckpt_path", "good.ckpt", "--model.net.channels", "5", *SAMPLE], "does not fit the network"),
        (["fit", "--ckpt_path", "good.ckpt", "--trainer.max_epochs", "9"], "resume with the same length"),
        (["predict", "--ckpt_path", "good.ckpt"], "--data.images DIR"),
        (["predict", "--ckpt_path", "good.ckpt", "--data.images", "nowhere"], "cannot read 'nowhere': no such file"),
        (["predict", "--ckpt_path", "good.ckpt", "--data.images", "empty"], "there is nothing in the folder empty"),
        (["fit", "--data.source", "sample", "--trainer.default_root_dir", "text.ckpt/logs"], "text.ckpt"),
        pytest.param(
            ["fit", "--trainer.accelerator", "gpu"],
            "gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input_ends_in_one_line(
    args: list[str], told: str, run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = run / "checkpoints/last.ckpt"
    shutil.copy(good, workdir / "good.ckpt")
    (workdir / "cut.ckpt").write_bytes(good.read_bytes()[:-2_000])
    (workdir / "text.ckpt").write_text("not a checkpoint")
    torch.save({"weight": torch.zeros(3)}, workdir / "foreign.ckpt")
    torch.save({"state_dict": Payload()}, workdir / "code.ckpt")
    (workdir / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": Payload()}))
    (workdir / "empty").mkdir()
    if args and args[0] == "fit" and "--data.source" in args and "sample" in args:
        args = [*args, "--data.root", str(sample_root)]
    files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    if "good.ckpt" in args and args[0] == "fit":
        args = [*args, "--data.source", "sample", "--data.root", str(sample_root)]
    assert told in fails(args, capsys)
    assert not (workdir / "payload-ran").exists()
    assert {path: path.read_bytes() for path in files} == files, "something was overwritten"


class Payload:
    """Pickled, it runs code on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("payload-ran",))


def test_payload_would_run_if_it_were_let(workdir: Path) -> None:
    """The test above can fail: plain unpickling runs the payload."""
    pickle.loads(pickle.dumps(Payload()))
    assert (workdir / "payload-ran").exists()


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODENET_DEBUG", "1")
    with pytest.raises(Exception, match="there is no checkpoint"):
        main(["test", "--ckpt_path", "none.ckpt"])


def test_condense_finds_the_leaf() -> None:
    message = """Parser key "model.net":
      Does not validate against any of the Union subtypes
      Errors:
        - Parser key "rtol":
            Expected a <class 'float'>. Got value: abc
        - Expected a <class 'NoneType'>
      Given value: x"""
    assert condense(message) == "model.net.rtol: Expected a float. Got value: abc"
    assert condense("plain\n  message") == "plain message"


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (["test", "--ckpt_path", "a.ckpt"], "a.ckpt"),
        (["test", "--ckpt_path=a.ckpt", "--x"], "a.ckpt"),
        (["fit", "--ckpt_path", "last"], None),
        (["fit"], None),
        (["fit", "--ckpt_path"], None),
    ],
)
def test_checkpoint_path(args: list[str], path: str | None) -> None:
    assert split(args, ("fit", "test")).checkpoint == path


def test_default_net_is_the_posts_but_for_its_solver() -> None:
    assert defaults()["model"]["net"]["init_args"]["solver"]["init_args"] == {"num_steps": 3}


def test_own_field_and_network_plug_in_by_path(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "mine.py").write_text(
        "import torch\nfrom odenet_lightning.fields import Field\n\n\n"
        "class Rotation(Field):\n"
        "    def __init__(self, speed: float = 1.0) -> None:\n"
        "        super().__init__()\n"
        "        self.speed = torch.nn.Parameter(torch.tensor(speed))\n\n"
        "    def forward(self, t, y):\n"
        "        return self.speed * torch.stack([y[:, 1], -y[:, 0]], 1)\n"
    )
    monkeypatch.syspath_prepend(str(workdir))
    config = {
        "model": {
            "net": {
                "class_path": "odenet_lightning.ODENet",
                "init_args": {
                    "channels": 2,
                    "field": {"class_path": "mine.Rotation", "init_args": {"speed": 0.5}},
                    "solver": {
                        "class_path": "odenet_lightning.solvers.Tsit5",
                        "init_args": {"rtol": 1e-3, "atol": 1e-3},
                    },
                },
            }
        }
    }
    (workdir / "mine.yaml").write_text(yaml.safe_dump(config))
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", "--config", "mine.yaml", "--data.source", "sample", "--data.root", str(sample_root), *QUICK, *few])
    (said,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("test it"))
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert "net.block.field.speed" in checkpoint["state_dict"]
    test = [
        "test",
        "--ckpt_path",
        "lightning_logs/version_0/checkpoints/best.ckpt",
        *QUICK[:4],
        "--data.source",
        "sample",
    ]
    error = fails([*test, "--data.root", str(sample_root)], capsys)
    assert "names 'mine.Rotation', and importing that would run its code" in error
    for trusted in (["--config", "mine.yaml"], ["--config=lightning_logs/version_0/config.yaml"]):
        main([*test, "--data.root", str(sample_root), *trusted])
        assert "Accuracy on 500 test images" in capsys.readouterr().out
    main(said.split(PROGRAM)[1].split())  # what the run said to do next
    assert "Accuracy on 500 test images" in capsys.readouterr().out
    assert list(Path("lightning_logs").glob("*/checkpoints")) == [Path("lightning_logs/version_0/checkpoints")]


RUN = {"class_path": "torch.utils.collect_env.subprocess.run"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", {**RUN, "dict_kwargs": {"args": {"touch": 1, "ran": 1}}}),  # a list of a dict is its keys
        ("optimizer", {"class_path": "torch.distributed.run.main", "init_args": {"args": ["--no-python", "ran"]}}),
        ("optimizer", {"class_path": "torch.optim.AdamW", "dict_kwargs": {"lr": 0.1}}),
        ("optimizer", {"class_path": "torch.optim.adamw.cast", "init_args": {"lr": 0.1}}),
        ("optimizer", {"class_path": "torch.serialization.load", "init_args": {"f": "ran"}}),
        ("net", "bare"),
        ("net", {"class_path": "bare"}),
        ("net", {"class_path": "odenet_lightning.cli.app.os.system", "init_args": {"command": "ran"}}),
        ("net", {"class_path": "odenet_lightning.ODENet", "init_args": {"touch ran": 1}}),
        ("net", {"class_path": "odenet_lightning.ODENet", "init_args": {"channels": torch.zeros(1)}}),
    ],
)
def test_a_checkpoint_of_plain_data_runs_nothing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    """Whatever its settings name: not even functions of torch's own modules."""
    monkeypatch.syspath_prepend(str(workdir))
    Path("evil.py").write_text("open('ran', 'w').close()\n")
    Path("bare").write_text("class_path: evil.Net\n")
    settings = {"net": {"class_path": "odenet_lightning.ODENet"}, key: value}
    checkpoint = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "hyper_parameters": settings}
    torch.save(checkpoint, "planted.ckpt")
    error = fails(["test", "--ckpt_path", "planted.ckpt", "--data.source", "sample"], capsys)
    assert "planted.ckpt names" in error
    assert not Path("ran").exists()


def test_settings_of_this_project_are_known() -> None:
    net = {
        "class_path": "odenet_lightning.models.PaperODENet",
        "init_args": {
            "channels": 8,
            "solver": {
                "class_path": "odenet_lightning.solvers.Dopri5",
                "init_args": {"rtol": 0.1, "first_step": "warm"},
            },
            "gradient": {"class_path": "odenet_lightning.gradients.Adjoint", "init_args": {"seminorm": True}},
            "field": {"class_path": "odenet_lightning.fields.ConvField", "init_args": {"channels": 8}},
        },
    }
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.99], "foreach": None}}
    augment = {"class_path": "odenet_lightning.augment.Deform", "init_args": {"degrees": 5.0}}
    head = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 4}}
    regularizer = {"class_path": "odenet_lightning.regularizers.Jacobian", "init_args": {"weight": 0.1}}
    model = {"net": net, "optimizer": optimizer, "regularizer": regularizer, "schedule": "one_cycle"}
    assert foreign_texts([model, augment, head], set()) == []
    own = {"net": {"class_path": "mine.Net", "init_args": {"width": 3}, "dict_kwargs": {"more": 1}}}
    assert foreign_texts(own, set()) == ["dict_kwargs", "mine.Net"]
    assert foreign_texts(own, {"mine.Net"}) == []


@pytest.mark.skipif(sys.platform != "linux", reason="is about glibc")
def test_freed_memory_is_kept() -> None:
    """Its pages are not cleared and mapped anew each time; in a process of its own, as it cannot be undone."""
    code = (
        "import resource, torch\n"
        "from odenet_lightning.cli.malloc import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "for i in range(25):\n"
        "    if i == 5: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    x = torch.ones(4_000_000); y = x + 1; del x, y\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 40_000  # of the 160,000 pages of 20 times 32 MB


def test_a_default_runs_hints_trust_nothing(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *QUICK, *few])
    out = capsys.readouterr().out
    assert "odenet_lightning test --ckpt_path" in out
    assert "--config" not in out


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt, 130), (SIGTERMException, 143)])
def test_an_interrupted_fit_says_how_to_go_on(
    workdir: Path,
    sample_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: type[BaseException],
    code: int,
) -> None:
    monkeypatch.setattr(Throughput, "on_train_epoch_start", lambda _, trainer, __: interrupt(trainer, end))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning ignores Ctrl-C from its first one on
    few = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *QUICK, *few])
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert (
        "interrupted at step 2: the same command with --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt"
        in said
    )


def interrupt(trainer: Trainer, end: type[BaseException]) -> None:
    if trainer.current_epoch == 1:
        raise end


def test_augmentation_by_class_path_and_flags(workdir: Path, sample_root: Path) -> None:
    data = ["--data.source", "sample", "--data.root", str(sample_root)]
    deform = ["--data.augment", "Deform", "--data.augment.degrees", "25"]
    main(["fit", *data, *deform, *FEW[:-2], "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"])
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    augment = checkpoint["datamodule_hyper_parameters"]["augment"]
    assert augment["class_path"] == "odenet_lightning.augment.Deform"
    assert augment["init_args"]["degrees"] == 25.0


EVIL = "from pathlib import Path\n\nPath('ran').touch()\n\n\nclass A:\n    pass\n"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("net", {"class_path": "evil.A"}),
        ("net", '{"class_path": "evil.A"}'),
        ("net", "evil.yaml"),
        ("net", "./evil.yaml"),
        ("net", {"class_path": "odenet_lightning.ODENet", "init_args": {"field": {"class_path": "evil.A"}}}),
        ("net", {"class_path": "torch.nn.Identity", "dict_kwargs": {"x": "evil.A"}}),
        ("optimizer", "evil.A"),
        ("augment", {"class_path": "evil.A"}),
    ],
)
@pytest.mark.parametrize("name", ["last.ckpt", "evil.A.ckpt", "evil.A"])
def test_a_checkpoint_imports_nothing_foreign(
    part: str,
    value: Any,
    name: str,
    run: Path,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    (workdir / "evil.py").write_text(EVIL)
    (workdir / "evil.yaml").write_text("class_path: evil.A")
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["datamodule_hyper_parameters" if part == "augment" else "hyper_parameters"][part] = value
    torch.save(checkpoint, workdir / name)
    for args in (["test", "--ckpt_path", name], ["fit", f"--ckpt_path={name}"], ["fit", "--weights", name]):
        if part == "optimizer" and "--weights" in args:
            continue  # which leaves the optimiser out
        assert "importing that would run its code" in fails([*args, "--data.source", "sample"], capsys)
    assert not (workdir / "ran").exists()


def test_another_class_of_network_keeps_its_own_width(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = ["--data.source", "sample", "--data.root", str(sample_root), *QUICK[:4], "--trainer.fast_dev_run", "1"]
    main(["fit", "--model.net", "PaperODENet", *once])
    assert "training PaperODENet, 208,266 parameters" in capsys.readouterr().out
    config = workdir / "net.yaml"
    config.write_text("model: {net: {class_path: odenet_lightning.models.PaperResNet, init_args: {blocks: 1}}}")
    main(["fit", "--config", str(config), *once])
    assert "training PaperResNet, 206,858 parameters" in capsys.readouterr().out
    config.write_text("model: {net: {init_args: {channels: 3}}}")
    main(["fit", f"--config={config}", *once])
    assert "training ODENet, 5,206 parameters" in capsys.readouterr().out


def test_a_checkpoint_brings_its_split_along(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.source", "sample", "--data.root", str(sample_root)]
    few = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", *QUICK, *data]
    main(["fit", *few, "--data.batch_size", "23", "--data.split_seed", "7", "--data.augment", "false"])
    capsys.readouterr()
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    main(["fit", *few, "--weights", last, "--trainer.max_epochs", "1"])
    kept = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())["data"]
    assert (kept["batch_size"], kept["split_seed"], kept["augment"]) == (23, 7, False)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", last, "--data.batch_size", "29", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (printed["batch_size"], printed["split_seed"], printed["source"]) == (29, 7, "sample")


def test_a_requeued_job_goes_on_from_its_own_state(
    run: Path, workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was started from: that lies behind it."""
    shutil.copy(run / "checkpoints/best.ckpt", workdir / "begin.ckpt")
    seen: list[str | None] = []
    monkeypatch.setattr(Trainer, "fit", lambda *_, ckpt_path=None, **__: seen.append(ckpt_path))
    monkeypatch.setattr(CLI, "after_fit", lambda _: None)
    monkeypatch.setattr(Trainer, "log_dir", property(lambda self: self.logger.log_dir))
    in_job = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"}
    for name, value in in_job.items():
        monkeypatch.setenv(name, value)
    args = ["fit", *SAMPLE, "--data.root", str(sample_root), *QUICK, "--ckpt_path", "begin.ckpt"]
    main(args)
    own = workdir / "lightning_logs/77/checkpoints/last.ckpt"
    own.parent.mkdir(parents=True)
    shutil.copy(run / "checkpoints/last.ckpt", own)
    main(args)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    main(args)
    assert [Path(path or "").resolve() for path in seen] == [workdir / "begin.ckpt"] * 2 + [own]


def test_two_fits_and_a_test_within_one_job(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    few = [*SAMPLE, "--data.root", str(sample_root), *QUICK[:4], "--trainer.max_epochs", "1"]
    few += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", *few])
    main(["fit", *few])
    main(["test", *few, "--ckpt_path", "lightning_logs/77/checkpoints/best.ckpt"])
    assert "Accuracy on 500 test images" in capsys.readouterr().out
    assert (workdir / "lightning_logs/version_0/checkpoints/best.ckpt").is_file()


OWN_DATA = """
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Letters(LightningDataModule):
    def __init__(self, letters: int = 10, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.letters, self.batch_size = letters, batch_size

    def train_dataloader(self):
        pictures = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(pictures, torch.arange(64) % self.letters), self.batch_size)

    val_dataloader = test_dataloader = train_dataloader
"""


def test_a_data_module_of_ones_own(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("lettering.py").write_text(OWN_DATA)
    Path("mine.yaml").write_text("data: {class_path: lettering.Letters, init_args: {batch_size: 16}}")
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1"]
    recipe = ["--config", str(Path(__file__).parents[1] / "configs/fast.yaml")]  # whose data are not these
    main(["fit", *recipe, "--data", "lettering.Letters", "--data.batch_size", "32", "--trainer.max_epochs", "1", *cpu])
    out = capsys.readouterr().out
    assert "step 2 " in out
    assert "data             Letters" in out
    (test,) = (line.split(PROGRAM)[1].split() for line in out.splitlines() if PROGRAM in line)
    main([*test, *cpu[:4]])
    assert "Accuracy on 64 test images" in capsys.readouterr().out
    best = "lightning_logs/version_0/checkpoints/best.ckpt"
    main(["validate", "--ckpt_path", best, "--config", "mine.yaml", *cpu[:4]])
    told = "best.ckpt was trained on the data of lettering.Letters: name it, too (--data lettering.Letters)"
    assert told in fails(["test", "--ckpt_path", best, *cpu[:4]], capsys)
    assert "Option 'folder' is not accepted" in fails(
        ["fit", "--data", "lettering.Letters", "--data.folder", "x"], capsys
    )
    assert "no attribute 'Leters'" in fails(["fit", "--data", "lettering.Leters"], capsys)


def test_a_data_module_of_ones_own_explains_itself(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("lettering.py").write_text(OWN_DATA)
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "lettering.Letters"])
    assert "--data.letters LETTERS" in capsys.readouterr().out


def test_the_built_in_data_module_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("odenet_lightning.MNISTDataModule", "MNISTDataModule"):
        with pytest.raises(SystemExit):
            main(["fit", "--data", name, "--data.batch_size", "3", "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["data"]["batch_size"] == 3


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == (0 if args else 2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for command in ("fit", "validate", "test", "predict", "study"):
        assert any(line[:1] == [command] and len(line) > 3 for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == odenet_lightning.__version__


def test_fit_brings_no_studies() -> None:
    """Nor what only they need."""
    code = (
        "import sys\nfrom odenet_lightning.cli import main\n"
        "try: main(['fit', '--print_config'])\nexcept SystemExit: pass\n"
        "print([name for name in ('odenet_lightning.studies', 'matplotlib.animation') if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_drawn_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    seeds = {drawn_seed(True) for _ in range(4)}
    assert len(seeds) == 4
    assert all(seed not in (True, False) and 0 <= seed < 2**32 for seed in seeds)
    assert (drawn_seed(False), drawn_seed(7)) == (False, 7)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="give a number"):
        drawn_seed(True)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert drawn_seed(True) == 11


def test_a_drawn_seed_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    seeds = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["fit", "--seed_everything", "true", "--print_config"])
        seeds.append(yaml.safe_load(capsys.readouterr().out)["seed_everything"])
    assert seeds == [True, True], "a config that is printed keeps the wish"


def test_the_best_value_has_its_monitors_name(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
    fit = ["fit", *SAMPLE, "--data.root", str(sample_root), *QUICK, *few]
    main([*fit, "--checkpoint.monitor", "val/loss"])
    out = capsys.readouterr().out
    (accuracy,) = re.findall(r"^best val/loss +\d\.\d+ \(val/acc (\d+\.\d\d%)\)$", out, re.MULTILINE)
    assert f"val {accuracy}" in out, "that of the same epoch"
    best = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    state = next(state for name, state in best["callbacks"].items() if "val/loss" in name)
    assert "'mode': 'min'" in str(best["callbacks"].keys())
    assert state["best_model_score"] == state["current_score"]
    assert "best val/acc" not in out
    main([*fit, "--trainer.check_val_every_n_epoch", "5"])
    out = capsys.readouterr().out
    assert re.search(r"^last checkpoint +lightning_logs/version_1/checkpoints/last.ckpt$", out, re.MULTILINE)
    assert "best" not in out


@pytest.mark.filterwarnings("default:no step was taken")
@pytest.mark.parametrize(
    ("limits", "schedule", "told"),
    [
        (["--trainer.max_epochs", "1"], "constant", "give a larger --trainer.max_epochs"),
        (["--trainer.max_steps", "2"], "constant", "give a larger --trainer.max_steps"),
        (
            ["--trainer.max_steps", "2", "--trainer.max_epochs", "1"],
            "constant",
            "give a larger --trainer.max_steps and a larger --trainer.max_epochs",
        ),
        (
            ["--trainer.max_epochs", "1"],
            "cosine",
            "so is its cosine schedule: train its weights on with a",
        ),
    ],
)
def test_advice_after_a_complete_run(
    limits: list[str], schedule: str, told: str, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
    fit = ["fit", *SAMPLE, "--data.root", str(sample_root), *QUICK[:4], *few, "--model.schedule", schedule]
    main([*fit, *limits])
    resume = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    capsys.readouterr()
    main([*fit, *limits, *resume])
    assert told in capsys.readouterr().err
    if told.endswith("give a larger --trainer.max_epochs"):  # the advice works
        larger = [str(2 * int(word)) if word.isdigit() else word for word in limits]
        main([*fit, *larger, *resume])
        out = capsys.readouterr()
        assert "4 steps" in out.out
        assert "no step was taken" not in out.err
    if schedule == "cosine":
        main([*fit, *limits, "--weights", resume[1]])
        out = capsys.readouterr().out
        assert f"parameters, from the weights of {resume[1]}" in out
        assert "trained          1 epochs, 2 steps" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--model.optimizer", "torch.optim.SGD"],
            "trained with MuonWithAdamW, this run has SGD: resume",
        ),
        (
            ["--model.schedule", "constant"],
            "trained with one_cycle, this run has constant: resume",
        ),
    ],
)
def test_a_run_is_not_resumed_with_another_optimizer_or_schedule(
    given: list[str], told: str, run: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor at the rate at which a cycle has ended."""
    last = str(run / "checkpoints/last.ckpt")
    error = fails(["fit", "--ckpt_path", last, *given], capsys)
    assert told in error
    assert error.endswith(f"with a new optimiser and schedule (fit --weights {last})")


def test_a_new_run_starts_from_weights(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the network and the data that go with them, and an optimiser and a schedule of its own."""
    few = ["--trainer.accelerator", "cpu", "--data.root", str(sample_root), "--trainer.log_every_n_steps", "1"]
    few += ["--trainer.limit_val_batches", "2", "--trainer.num_sanity_val_steps", "0"]
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    weights = {key: best[key] for key in ("state_dict", "hyper_parameters", "pytorch-lightning_version", "warm_steps")}
    torch.save({**weights, **{key: best[key] for key in best if key.startswith(("data", "MNIST"))}}, "weights.ckpt")
    # with a rate of 0 they stay
    still = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0", "--model.schedule", "constant"]
    main(["fit", "--weights", "weights.ckpt", *still, *few, "--trainer.max_steps", "3"])
    out = capsys.readouterr().out
    assert "digits           sample" in out
    last = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    for name, weight in best["state_dict"].items():
        assert torch.equal(weight, last["state_dict"][name]), name
    assert yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())["weights"] == "weights.ckpt"
    # its own config, which names the weights, resumes it
    main(
        [
            "fit",
            "--config",
            "lightning_logs/version_0/config.yaml",
            "--ckpt_path",
            "lightning_logs/version_0/checkpoints/last.ckpt",
            "--trainer.max_steps",
            "5",
        ]
    )
    out = capsys.readouterr().out
    assert "from the weights" not in out
    assert "5 steps" in out


def test_weights_alone_are_not_resumed(run: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks"):
        del checkpoint[key]
    torch.save(checkpoint, "weights.ckpt")
    error = fails(["fit", "--ckpt_path", "weights.ckpt"], capsys)
    assert "holds weights without the optimiser's state" in error
    assert "(fit --weights weights.ckpt)" in error


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "c.yaml is empty"),
        (bytes(range(256)), "c.yaml cannot be read as a config: not a text"),
        (b"- a\n", "c.yaml holds no settings"),
        (b"a: [1\nb: 2", "c.yaml is not YAML in line 2"),
        (b"config: c.yaml", "c.yaml names itself"),
        (b"config: d.yaml", "names a config that is not there: d.yaml"),
        (b"trainer: 3", "c.yaml: trainer needs 'option: value' lines of its own"),
        (b"ckpt_path: 3", "ckpt_path must name a file, not 3"),
        (b"model: {net: {class_path: ODENet, init_args: [1]}}", "error: "),
        (b"model: {nett: 3}", "does not accept option 'model.nett'"),
    ],
)
def test_a_config_that_is_none(content: bytes, told: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_bytes(content)
    error = fails(["fit", "--config", "c.yaml"], capsys)
    assert told in error
    assert "unexpected" not in error


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--trainer.callbacks", "LearningRateFinder"], "compare a few --model.optimizer.lr"),
        (["--trainer.callbacks", "BatchSizeFinder"], "never fill it: give --data.batch_size"),
        (
            ["--checkpoint.monitor", "val/accc", "--checkpoint.mode", "max"],
            "--checkpoint.monitor val/accc is not logged: what is, is 'train/loss'",
        ),
        (["--trainer.callbacks", "BackboneFinetuning"], "needs the module to have 'backbone'"),
        (["--trainer.callbacks", "EarlyStopping"], "the following arguments are required: monitor"),
        (["--checkpoint.monitor", "lr"], "whether lr should be large or small is not known: give --checkpoint.mode"),
        (["--checkpoint.filename", "last"], "which is kept anyway: leave out --checkpoint.filename last"),
        (["--checkpoint.save_last", "true"], "which is kept anyway: leave out --checkpoint.save_last"),
        (["--trainer.barebones", "true"], "--trainer.barebones is for loops without logging and checkpoints"),
        (["--trainer.devices", "x"], "should be an int > 0"),
        (["--trainer.accumulate_grad_batches", "0"], "--trainer.accumulate_grad_batches must be positive, not 0"),
        (["--trainer.val_check_interval", "0"], "--trainer.val_check_interval must be positive, not 0"),
        (["--data.augment", "Deform", "--data.augment.degrees", "-3"], "Deform: degrees must not be negative"),
        (["--model.optimizer.lr", "0.3", "--model.optimizer", "SGD"], "its settings need its class before them"),
    ],
)
def test_foreseeable_slips(
    args: list[str], told: str, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    error = fails(
        ["fit", *SAMPLE, "--data.root", str(sample_root), "--trainer.accelerator", "cpu", *few, *args], capsys
    )
    assert told in error
    assert "unexpected" not in error


@pytest.mark.parametrize("flag", ["--ckpt", "--conf", "--ckpt_pat=", "--trainer.max_epoch"])
def test_no_option_is_abbreviated(
    flag: str, run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An abbreviated checkpoint would bring neither its settings nor the question whether it is trusted."""
    Path("c.yaml").write_text("trainer: {max_epochs: 1}")
    value = {"--conf": "c.yaml", "--trainer.max_epoch": "1"}.get(flag, str(run / "checkpoints/last.ckpt"))
    few = [*QUICK, "--trainer.fast_dev_run", "1", *SAMPLE, "--data.root", str(sample_root)]
    given = [flag + value] if flag.endswith("=") else [flag, value]
    error = fails(["fit", *few, *given], capsys)
    assert f"unrecognized arguments: {' '.join(given)} (options are written out in full" in error


def test_no_option_of_a_study_is_abbreviated(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --qui " in fails(["study", "gradients", "--qui"], capsys)


OWN_PARTS = """
from lightning import Callback
from odenet_lightning.augment import Augmentation


class Picky(Callback):
    def __init__(self, n: int = 2) -> None:
        raise ValueError("Expected n to be:\\n - at most 1")


class Packaged(Augmentation):
    def __init__(self) -> None:
        import no_such_package

    def __call__(self, images):
        return images


class Mistyped(Packaged):
    def __init__(self) -> None:
        self.no_such_method()
"""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--trainer.callbacks", "parts.Picky"], "Picky: Expected n to be: - at most 1"),
        (["--trainer.callbacks", "parts.Picky", "--trainer.callbacks.n", "3"], "Picky: Expected n to be: - at most 1"),
        (["--trainer.callbacks=[{class_path: parts.Picky}]"], "Picky: Expected n to be: - at most 1"),
        (["--data.augment", "parts.Packaged"], "Packaged: No module named 'no_such_package'"),
        (["--data.augment", "parts.Mistyped"], "Mistyped: 'Mistyped' object has no attribute 'no_such_method'"),
        (["--model.net.solver", "TorchDiffEq", "--model.net.solver.method", "dopri9"], "TorchDiffEq: torchdiffeq "),
    ],
)
def test_a_constructors_own_error_is_shown(
    args: list[str], told: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("parts.py").write_text(OWN_PARTS)
    assert f"error: {told}" in fails(["fit", *args], capsys)


@pytest.mark.parametrize("limit", ["limit_predict_batches", "fast_dev_run"])
def test_a_limited_prediction_says_what_it_left_out(
    run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    digits = load_sample(sample_root)
    Path("mine").mkdir()
    for index in range(5):
        Image.fromarray(digits.images[index].numpy()).save(f"mine/{index}.png")
    best = str(run / "checkpoints/best.ckpt")
    main(["predict", "--ckpt_path", best, "--data.images", "mine", "--data.batch_size", "1", f"--trainer.{limit}", "2"])
    assert "2 pictures classified, 0 skipped, 3 left out" in capsys.readouterr().out
    (table,) = Path().rglob("predictions.csv")
    assert [row.split(",")[0] for row in table.read_text().split()] == ["file", "mine/0.png", "mine/1.png"]


def test_predictions_of_data_of_ones_own(
    run: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    alike = OWN_DATA.strip().replace("self.batch_size)\n", "batch_size=self.batch_size)\n")
    Path("predicting.py").write_text(f"{alike}\n    predict_dataloader = train_dataloader\n")
    main(["predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--data", "predicting.Letters", *QUICK[:4]])
    assert "64 pictures classified" in capsys.readouterr().out
    (table,) = Path().rglob("predictions.csv")
    assert [row.split(",")[0] for row in table.read_text().split()] == ["file", *map(str, range(64))]


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_lost_process_names_no_checkpoint_that_is_not_there(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_kept: bool
) -> None:
    def lose(*_: Any) -> None:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr(Throughput, "on_validation_start" if not is_kept else "on_train_end", lose)
    few = [*QUICK[:4], "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    few += ["--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0", "--pictures.every_n_epochs", "0"]
    error = fails(["fit", *SAMPLE, "--data.root", str(sample_root), *few], capsys)
    assert "another process of this run has ended" in error
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    assert error.endswith(f"the same command with --ckpt_path {last} resumes it" if is_kept else "no checkpoint yet")


def test_a_run_limited_by_time_alone(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default schedule needs a length in steps; both ways out that the refusal names lead on."""
    fit = ["fit", *SAMPLE, "--data.root", str(sample_root), *QUICK[:4], "--trainer.max_time", "00:00:00:01"]
    fit += ["--trainer.max_epochs", "-1", "--model.net", "ResNet", "--trainer.limit_val_batches", "1"]
    fit += ["--pictures.every_n_epochs", "0", "--trainer.limit_train_batches", "3", "--trainer.log_every_n_steps", "1"]
    refused = fails(fit, capsys)
    ways = [["--trainer.max_steps", "1000"], ["--model.schedule", "constant"]]
    for way in ways:
        assert " ".join(way) in refused
        main([*fit, *way])
        assert "best val/acc" in capsys.readouterr().out
