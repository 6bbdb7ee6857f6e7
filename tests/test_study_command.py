"""Studies on the command line: their flags, their errors, and the networks that they are given."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odenet_lightning.checkpoints import RefusedCheckpoint
from odenet_lightning.cli import main
from odenet_lightning.models import ODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.studies import STUDIES
from odenet_lightning.studies.command import run_command
from odenet_lightning.studies.recipes import Recipes
from odenet_lightning.studies.rows import Ledger
from tests.squares import Squares


def test_recipes_of_one_name_are_refused(workdir: Path) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "mine.yaml").touch()
    with pytest.raises(ValueError, match=r"two configs are named mine.yaml"):
        Recipes(configs=["a/mine.yaml", "b/mine.yaml"]).check()


@pytest.mark.slow
def test_a_failed_command_is_named_with_its_last_line(workdir: Path) -> None:
    with pytest.raises(RuntimeError, match=r"'fit --data.source moon ...' ended with code 2: .*moon"):
        run_command(["fit", "--data.source", "moon"], workdir)
    assert run_command(["fit", "--print_config"], workdir) > 0


@pytest.mark.parametrize("name", list(STUDIES))
def test_help_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", name, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(STUDIES[name]):
        assert re.search(rf"--{field.name}\+? \S+ [a-z][^()]+.*?\(type: ", text), field.name


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a call that must fail; returns its one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code in (1, 2)
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return error


def test_errors_are_one_line(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--root", str(sample_root), "--source", "sample"]
    assert "gradients" in fails(["study"], capsys)
    assert "nothing" in fails(["study", "nothing"], capsys)
    assert "steps must be at most" in fails(["study", "paper", *at, "--steps", "100"], capsys)
    assert "tolerances must be a list" in fails(["study", "paper", *at, "--tolerances", "[]"], capsys)
    assert "tolerances must be a list" in fails(["study", "paper", *at, "--tolerances", "[0.1,0.1]"], capsys)
    assert "depths must be positive, not 0" in fails(["study", "gradients", *at, "--depths", "[0]"], capsys)
    assert "batch_size must be positive" in fails(["study", "depth", *at, "--batch_size", "-4"], capsys)
    assert "device must be" in fails(["study", "depth", *at, "--device", "gpu"], capsys)
    assert "frames must be 5, 9" in fails(["study", "flow", *at, "--frames", "6"], capsys)
    assert "there is no checkpoint none.ckpt" in fails(["study", "digits", *at, "--ckpt_path", "none.ckpt"], capsys)
    if not torch.cuda.is_available():
        assert "--device cpu" in fails(["study", "paper", *at, "--device", "cuda"], capsys)
    (workdir / "rows.csv").write_text("a,b\n1,2\n1\n")
    assert "move it away" in fails(["study", "depth", *at, "--folder", "."], capsys)


def test_an_interrupted_command_says_so_and_fails(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "squares", Squares)
    args = ["study", "squares", "--root", str(sample_root), "--source", "sample"]
    with pytest.raises(SystemExit) as ended:
        main([*args, "--until", "2"])
    assert ended.value.code == 130
    assert "interrupted: the rows so far are in lightning_logs/study-squares" in capsys.readouterr().err
    monkeypatch.setattr(Squares, "draw", lambda *_: (_ for _ in ()).throw(SIGTERMException))
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 143


def test_quick_in_a_config_is_the_flag(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "squares", Squares)
    monkeypatch.setattr(Squares, "quick", {"count": 3, "power": 4})
    Path("quick.yaml").write_text("quick: true\npower: 1\n")
    main(["study", "squares", "--root", str(sample_root), "--config", "quick.yaml"])
    rows = Ledger(Path("lightning_logs/study-squares-quick/rows.csv")).rows
    assert [row["square"] for row in rows] == [0, 1, 2], "three of them, and the config's own values win"


def test_a_network_with_parts_of_others_is_imported_only_if_trusted(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("swirls.py").write_text(
        "from odenet_lightning.fields import ConvField\n\n\nclass Swirl(ConvField):\n    pass\n"
    )
    config = {"class_path": "odenet_lightning.ODENet", "init_args": {"field": {"class_path": "swirls.Swirl"}}}
    state = {f"net.{key}": value for key, value in ODENet().state_dict().items()}
    parts = {"state_dict": state, "pytorch-lightning_version": "2", "hyper_parameters": {"net": config}}
    torch.save(parts, "foreign.ckpt")
    for trusted in (None, "swirl", "swirls.Swirl.Other", "s.irls", "other"):
        with pytest.raises(RefusedCheckpoint, match=r"names 'swirls.Swirl'.*--trusted MODULE"):
            ClassifierModule.load_from_checkpoint("foreign.ckpt", trusted=trusted)
    assert "swirls" not in sys.modules
    for trusted in ("swirls", "swirls.Swirl"):
        net = ClassifierModule.load_from_checkpoint("foreign.ckpt", trusted=trusted).net
        assert isinstance(net, ODENet)
        assert type(net.block.field).__name__ == "Swirl"
    del sys.modules["swirls"]


def test_a_fits_checkpoint_can_be_studied(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--data.source", "sample", "--data.root", str(sample_root)]
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
    few += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1"]
    plain = ["--pictures.every_n_epochs", "0"]
    main(["fit", *at, *few, *plain, "--model.net.channels", "2", "--data.split_seed", "7"])
    path = "lightning_logs/version_0/checkpoints/last.ckpt"
    net = ClassifierModule.load_from_checkpoint(path).net.eval()
    assert isinstance(net, ODENet)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[f"net.{key}"]) for key, value in net.state_dict().items())
    assert not net.training
    main(
        ["study", "digits", "--root", str(sample_root), "--source", "sample", "--ckpt_path", path, "--images_used", "3"]
    )
    (row, *_) = Ledger(Path("lightning_logs/study-digits/rows.csv")).rows
    assert '"network": "' in str(row["config"])
    assert path not in str(row["config"])
    assert '"split_seed": 7' in str(row["config"]), "the digits that it was not trained on"
    main(["fit", *at, *few, "--model.net", "ResNet", *plain])
    again = "lightning_logs/version_1/checkpoints/last.ckpt"
    error = fails(["study", "flow", "--root", str(sample_root), "--source", "sample", "--ckpt_path", again], capsys)
    assert "holds a ResNet, which has no ODE block to study" in error
