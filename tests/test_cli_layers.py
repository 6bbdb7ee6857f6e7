"""What is set where nobody sets it: defaults, seeds, and what a checkpoint brings along."""

from pathlib import Path

import pytest
import yaml

from odenet_lightning import ClassifierModule
from odenet_lightning.cli import main
from odenet_lightning.cli.argv import split
from odenet_lightning.cli.choices import drawn_seed
from odenet_lightning.cli.configs import defaults
from odenet_lightning.cli.errors import UsageError
from tests.helpers import QUICK


def test_a_narrower_checkpoint_needs_no_flags(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--data.source", "sample", "--data.root", str(sample_root)]
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
    main(["fit", *source, *QUICK, *few, "--model.net.channels", "2"])
    main(["validate", *source, "--ckpt_path", "lightning_logs/version_0/checkpoints/best.ckpt", *few[2:4]])
    module = ClassifierModule.load_from_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
    assert module.num_params == 3_456


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
    assert defaults()["model"]["net"]["init_args"]["solver"]["init_args"] == {"num_steps": 5}


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


def test_the_built_in_data_module_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("odenet_lightning.MNISTDataModule", "MNISTDataModule"):
        with pytest.raises(SystemExit):
            main(["fit", "--data", name, "--data.batch_size", "3", "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["data"]["batch_size"] == 3


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
