"""Checkpoints load in plain Python, with one call, and those of former versions load, test and resume."""

from pathlib import Path
from typing import Any

import pytest
import torch

from odenet_lightning import ClassifierModule, MNISTDataModule, ODENet, module
from odenet_lightning.augment import Deform
from odenet_lightning.checkpoints import RefusedCheckpoint
from odenet_lightning.cli import main
from odenet_lightning.optimizers import MuonWithAdamW
from odenet_lightning.regularizers import Kinetic
from odenet_lightning.solvers import RK4, Bosh3
from tests.helpers import printed
from tests.training import FewDigits, trainer_in

FORMER = Path(__file__).parent / "checkpoints"
SMALL = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.limit_train_batches", "2"]
SMALL += ["--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1", "--pictures.every_n_epochs", "0"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


def fit(root: Path, *args: str) -> None:
    main(["fit", "--data.source", "sample", "--data.root", str(root), *SMALL, "--model.net.channels", "2", *args])


@pytest.mark.parametrize("compile", ["true", "false"])
def test_what_fit_writes_loads_with_one_call(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, compile: str
) -> None:
    monkeypatch.setattr(module, "compile_network", lambda *_: None)  # a minute
    warm = ["--model.net.solver", "Bosh3", "--model.net.solver.first_step", "warm"]
    fit(
        sample_root,
        *warm,
        "--model.compile",
        compile,
        "--model.optimizer",
        "MuonWithAdamW",
        "--model.optimizer.lr",
        "0.03",
        "--model.regularizer",
        "Kinetic",
        "--model.regularizer.weight",
        "0.3",
    )
    loaded, stored = ClassifierModule.load_from_checkpoint(LAST), torch.load(LAST, weights_only=True)
    assert isinstance(loaded.net, ODENet)
    assert isinstance(loaded.net.block.solver, Bosh3)
    assert loaded.net.block.warm_step == stored["warm_steps"][0] is not None
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, stored["state_dict"][name]), name
    optimizer = loaded.optimizer_of(loaded.parameters())
    assert isinstance(optimizer, MuonWithAdamW)
    assert optimizer.param_groups[1]["lr"] == 0.03
    assert loaded.regularizer == Kinetic(0.3)
    resumed = printed("fit", "--ckpt_path", str(LAST))["model"]["regularizer"]
    assert resumed == stored["hyper_parameters"]["regularizer"]
    kept = stored["hyper_parameters"]
    assert dict(loaded.hparams) == {key: value for key, value in kept.items() if not key.startswith("_")}


def test_foreign_classes_are_imported_only_where_trusted(workdir: Path, sample_root: Path) -> None:
    fit(sample_root)
    stored = torch.load(LAST, weights_only=True)
    net = stored["hyper_parameters"]["net"]
    net["init_args"]["field"] = {"class_path": "tests.test_read.Still"}
    torch.save(stored, LAST)
    with pytest.raises(RefusedCheckpoint, match=r"names 'tests.test_read.Still'.*trusted='MODULE'"):
        ClassifierModule.load_from_checkpoint(LAST)
    with pytest.raises(RefusedCheckpoint, match="cannot be made again"):  # it is imported, and is no field
        ClassifierModule.load_from_checkpoint(LAST, trusted="tests.test_read")
    assert ClassifierModule.load_from_checkpoint(LAST, net=ODENet(2)).num_params == 3_456


class Still:
    """No field."""


def test_a_network_is_never_guessed(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_epochs=1)
    trainer.fit(ClassifierModule(ODENet(solver=RK4(num_steps=2))), FewDigits())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(RefusedCheckpoint, match=r"does not say what its network is: give it \(net=\.\.\.\)"):
        ClassifierModule.load_from_checkpoint(tmp_path / "a.ckpt")


def test_lightnings_own_arguments_of_loading(workdir: Path) -> None:
    path = FORMER / "epoch_end.ckpt"
    assert ClassifierModule.load_from_checkpoint(path, weights_only=True, strict=True).net.num_params
    for place in ("cpu", "meta"):
        loaded = ClassifierModule.load_from_checkpoint(path, map_location=place)
        assert {tensor.device.type for tensor in loaded.state_dict().values()} == {place}
    stored = torch.load(path, weights_only=True)
    name = next(iter(stored["state_dict"]))
    del stored["state_dict"][name]
    torch.save(stored, "part.ckpt")
    with pytest.raises(RuntimeError, match="Missing key"):
        ClassifierModule.load_from_checkpoint("part.ckpt")
    assert name in ClassifierModule.load_from_checkpoint("part.ckpt", strict=False).state_dict()
    with pytest.raises(ValueError, match="leave weights_only out"):
        ClassifierModule.load_from_checkpoint(path, weights_only=False)
    with pytest.raises(ValueError, match="leave hparams_file out"):
        ClassifierModule.load_from_checkpoint(path, hparams_file="hparams.yaml")


@pytest.mark.filterwarnings("default:.*was trained with Deform")
@pytest.mark.parametrize("command", ["test", "validate", "fit"])
def test_the_command_line_guesses_no_network(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Of a checkpoint that a Trainer in plain Python has written; with its name it goes on."""
    trainer = trainer_in(workdir, max_epochs=1)
    data = MNISTDataModule(str(sample_root), "sample", batch_size=500, augment=Deform())
    module = ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), schedule="constant")
    trainer.fit(module, data)
    trainer.save_checkpoint("plain.ckpt")
    call = [command, "--data.root", str(sample_root), *SMALL[:4], "--ckpt_path", "plain.ckpt"]
    net = ["--model.net", "ODENet", "--model.net.channels", "2"]
    for part in ([], ["--model.net.solver", "RK4"]):
        with pytest.raises(SystemExit):
            main([*call, *part])
        assert "plain.ckpt does not say what its network" in capsys.readouterr().err
    if command != "fit":
        main([*call, *net])
        return
    with pytest.raises(SystemExit):
        main([*call, *net])
    assert "its optimiser is: name it and its settings (--model.optimizer CLASS" in capsys.readouterr().err
    longer = ["--trainer.max_epochs", "2", "--trainer.limit_val_batches", "1", "--pictures.every_n_epochs", "0"]
    main([*call, *net, "--model.optimizer", "AdamW", *longer])
    told = "plain.ckpt was trained with Deform, and does not say with which settings"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["epoch_end", "within_epoch"])
def test_former_checkpoints_load_test_and_resume(
    workdir: Path, sample_root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both of a run with max_steps, at an epoch's end and within the next epoch."""
    path = FORMER / f"{name}.ckpt"
    former: dict[str, Any] = torch.load(path, weights_only=True)
    assert ClassifierModule.load_from_checkpoint(path).net.ode_blocks[0].warm_step == former["warm_steps"][0]
    root = ["--data.root", str(sample_root)]
    main(["test", "--ckpt_path", str(path), *root, *SMALL[:4]])
    assert "Accuracy on 500 test images" in capsys.readouterr().out
    run = ["fit", "--config", str(FORMER / "run.yaml"), *root]
    main(run)
    main([*run, "--ckpt_path", str(path)])
    assert capsys.readouterr().out.count("epoch 1 ") == 1, "the first epoch is over"
    wanted, found = (
        torch.load(f"lightning_logs/version_{number}/checkpoints/last.ckpt", weights_only=True)
        for number in sorted(int(folder.name.split("_")[1]) for folder in Path("lightning_logs").glob("version_*"))[-2:]
    )
    assert found["global_step"] == wanted["global_step"] == 8
    for key, weight in wanted["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][key], weight, msg=key)
