"""The commands: what each leaves and says, and what it does not."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import odenet_lightning
from odenet_lightning.cli import main, malloc
from odenet_lightning.data import load_sample
from tests.helpers import FEW, QUICK, SAMPLE, fails


def test_fit_leaves_everything_a_person_needs(run: Path) -> None:
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run / "config.yaml").is_file()
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    scalars = {"train/loss", "train/acc", "val/loss", "val/acc", "nfe/forward", "nfe/val_forward", "lr"}
    assert scalars | {"perf/images_per_second"} <= set(events.Tags()["scalars"])
    assert "hp_metric" not in events.Tags()["scalars"]
    assert set(events.Tags()["images"]) == {"val/confusion", "val/misclassified", "val/feature_maps"}
    assert [event.step for event in events.Images("val/confusion")] == [119]  # after the last epoch
    assert [event.step for event in events.Scalars("train/loss")] == list(range(9, 120, 10))
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= events.summary_metadata.keys()


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


@pytest.mark.skipif(sys.platform != "linux", reason="is about glibc")
def test_freed_memory_is_kept() -> None:
    """Its pages are not cleared and mapped anew each time; in a process of its own, as it cannot be undone."""
    code = (
        "import resource, runpy\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): x = bytearray(b'x') * 16_000_000; y = x + b'y'; del x, y\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "usual = faults()\n"
        f"runpy.run_path({malloc.__file__!r})['keep_freed_memory']()\n"
        "faults()\n"
        "print(usual, faults())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usual, kept = map(int, ended.stdout.split())
    assert kept < usual / 4


def test_a_default_runs_hints_trust_nothing(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *QUICK, *few])
    out = capsys.readouterr().out
    assert "odenet_lightning test --ckpt_path" in out
    assert "--config" not in out


def test_augmentation_by_class_path_and_flags(workdir: Path, sample_root: Path) -> None:
    data = ["--data.source", "sample", "--data.root", str(sample_root)]
    deform = ["--data.augment", "Deform", "--data.augment.degrees", "25"]
    main(["fit", *data, *deform, *FEW[:-2], "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"])
    checkpoint = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    augment = checkpoint["datamodule_hyper_parameters"]["augment"]
    assert augment["class_path"] == "odenet_lightning.augment.Deform"
    assert augment["init_args"]["degrees"] == 25.0


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
