"""Fields, networks and data of one's own, by their paths."""

from pathlib import Path

import pytest
import torch
import yaml

from odenet_lightning.cli import main
from odenet_lightning.cli.errors import PROGRAM
from tests.helpers import QUICK, fails


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


def test_the_next_commands_are_whole_with_loggers_of_ones_own(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "still.py").write_text(
        "from odenet_lightning.fields import Field\n\n\n"
        "class Still(Field):\n    def forward(self, t, y):\n        return 0 * y\n"
    )
    monkeypatch.syspath_prepend(str(workdir))
    names = {"CSVLogger": "csv", "TensorBoardLogger": "boards"}
    loggers = [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": folder}}
        for name, folder in names.items()
    ]
    few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.logger", str(loggers)]
    data = ["--data.source", "sample", "--data.root", str(sample_root)]
    main(["fit", "--model.net.field", "still.Still", *data, *QUICK, *few])
    lines = {line[:16].strip(): line[17:] for line in capsys.readouterr().out.splitlines()}
    assert lines["curves"] == "tensorboard --logdir boards/lightning_logs"
    assert "--config csv/lightning_logs/version_0/config.yaml --ckpt_path csv/" in lines["test it"]
    assert Path("csv/lightning_logs/version_0/config.yaml").is_file()


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
