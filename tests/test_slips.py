"""A researcher's slips in parts of one's own: each ends in one line that names the class and what to do."""

from pathlib import Path

import pytest

from odenet_lightning.cli import main
from tests.helpers import fails

PARTS = """
import torch
from lightning import Callback, LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from odenet_lightning import Classifier
from odenet_lightning.augment import Augmentation
from odenet_lightning.fields import Field
from odenet_lightning.solvers import Solver


class Conv(Field):
    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)


class Thin(Conv):
    def forward(self, t, y):
        return self.conv(y)[:, :1]


class Swapped(Conv):
    def forward(self, y, t):
        return self.conv(y)


class Timeless(Conv):
    def forward(self, y):
        return self.conv(y)


class Mask(Conv):
    def forward(self, t, y):
        return (self.conv(y) > 0).long()


class Double(Conv):
    def forward(self, t, y):
        return self.conv.double()(y)


class Forgetful(Conv):
    def forward(self, t, y):
        self.conv(y)


class Typo(Conv):
    def forward(self, t, y):
        return self.cnv(y)


class Bodiless(Field):
    pass


class Unflattened(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, x):
        return self.head(x)


class Decided(Unflattened):
    def forward(self, x):
        return self.head(x.flatten(1)).argmax(1)


class Narrow(Unflattened):
    def forward(self, x):
        return self.head(x.flatten(1))[:, :3]


class Crop(Augmentation):
    def forward(self, images):
        return images[:, :, :20]


class Renamed(Augmentation):
    def transform(self, images):
        return images


class Callable:
    def __call__(self, images):
        return images


class Packaged(Callback):
    def __init__(self) -> None:
        import no_such_package


class Fragile(Callback):
    def on_train_start(self, trainer, module):
        module.no_such_thing


class Unlabelled(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(64, 1, 28, 28)), 8)

    val_dataloader = train_dataloader


class Lazy(Solver):
    def integrate(self, problem):
        return problem.y0

    def replay(self, field, step):
        return step.y
"""

FIELD, NET = ["--model.net", "ODENet", "--model.net.field"], ["--model.optimizer", "AdamW", "--model.net"]
STATE = r"[128, 6, 26, 26]"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([*FIELD, "parts.Thin"], f"Thin returned the shape [128, 1, 26, 26], needs {STATE}, the shape of y"),
        ([*FIELD, "parts.Swapped"], f"Swapped failed as f(t, y), with t a scalar and y of shape {STATE}"),
        ([*FIELD, "parts.Timeless"], "Timeless.forward() takes 2 positional arguments but 3 were given"),
        ([*FIELD, "parts.Mask"], "Mask returned torch.int64, needs torch.float32"),
        ([*FIELD, "parts.Double"], "raised in Double.forward (parts.py, line 41); set ODENET_DEBUG=1"),
        ([*FIELD, "parts.Forgetful"], f"Forgetful returned NoneType, needs a tensor of shape {STATE}"),
        ([*FIELD, "parts.Typo"], "'Typo' object has no attribute 'cnv' (raised in Typo.forward (parts.py, line 51);"),
        ([*FIELD, "parts.Bodiless"], "a class of your own needs all the methods of its base class"),
        ([*FIELD, "parts.Missing"], "has no attribute 'Missing'"),
        ([*NET, "parts.Unflattened"], "raised in Unflattened.forward (parts.py, line 64); set ODENET_DEBUG=1"),
        ([*NET, "parts.Decided"], "Decided returned [128], torch.int64, needs logits: [128, K]"),
        ([*NET, "parts.Narrow"], "the network has no output for label"),
        (["--model.net", "parts.Unflattened"], "error: MuonWithAdamW is for networks with convolutions"),
        (["--data.augment", "parts.Crop"], "Crop returned the shape [128, 1, 20, 28], needs [128, 1, 28, 28]"),
        (["--data.augment", "parts.Renamed"], "Renamed needs a method forward(images)"),
        (["--data.augment", "parts.Callable"], "does not correspond to a subclass of Augmentation"),
        (["--trainer.callbacks", "parts.Packaged"], "Packaged: No module named 'no_such_package'"),
        (["--trainer.callbacks", "parts.Fragile"], "raised in Fragile.on_train_start (parts.py, line "),
        (["--data", "parts.Unlabelled"], "Unlabelled gives a list of 1, needs batches of two: images, labels"),
        (["--model.net.solver", "parts.Lazy"], "Lazy.integrate returned Tensor, needs a Solution"),
    ],
)
def test_a_slip_is_named_with_its_class(
    args: list[str],
    told: str,
    workdir: Path,
    sample_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("parts.py").write_text(PARTS)
    data = [] if "--data" in args else ["--data.source", "sample", "--data.root", str(sample_root)]
    once = ["--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1", "--trainer.num_sanity_val_steps", "0"]
    assert told in fails(["fit", *data, *once, *args], capsys)


def test_one_batch_is_not_all_of_them(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("trainer: {limit_predict_batches: 1, limit_test_batches: 1.0}")
    given = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0.5"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "c.yaml", *given, "--print_config"])
    printed = capsys.readouterr().out
    for line in ("limit_train_batches: 1\n", "limit_val_batches: 0.5\n", "limit_test_batches: 1.0\n"):
        assert line in printed
    assert "limit_predict_batches: 1\n" in printed
