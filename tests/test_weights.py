"""The trained networks that come with the package: what they hold, how well they read digits, and their names."""

import csv
import random
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from odenet_lightning import ClassifierModule
from odenet_lightning.checkpoints import checkpoint_file, load_checkpoint, shipped_names
from odenet_lightning.checkpoints.trust import texts
from odenet_lightning.cli import main
from odenet_lightning.data import MNISTDataModule, load_sample, normalise
from odenet_lightning.data.image_folder import read_digit
from odenet_lightning.data.picture_files import load_pictures
from odenet_lightning.exporting.fixed import predicted
from odenet_lightning.trained import load_trained
from tests.helpers import fails

# test accuracy of each, in per cent, as measured when it was made
ACCURACY = {"default": 98.59, "one_step": 98.63, "paper": 99.62, "record": 99.62}


def accuracy(name: str, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((predicted(load_trained(name).net, images) == labels).double().mean()) * 100


def test_they_are_known_and_small() -> None:
    assert set(shipped_names()) == set(ACCURACY)
    assert sum(checkpoint_file(name).stat().st_size for name in ACCURACY) <= 1_000_000


@pytest.mark.parametrize("name", ACCURACY)
def test_weights_and_settings_are_all_they_hold(name: str) -> None:
    checkpoint = load_checkpoint(name)
    assert not {"optimizer_states", "lr_schedulers", "loops", "callbacks", "rng"} & checkpoint.keys()
    assert {value.dtype for value in checkpoint["state_dict"].values()} <= {torch.float32, torch.int64}
    rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    assert not [text for text in texts(rest) if "/" in text], "names a folder"


@pytest.mark.parametrize("name", ACCURACY)
def test_accuracy_on_the_sample(name: str, sample_root: Path) -> None:
    digits = load_sample(sample_root)
    assert accuracy(name, digits.images[::3], digits.labels[::3]) > ACCURACY[name] - 1.0


@pytest.mark.mnist
@pytest.mark.parametrize("name", ACCURACY)
def test_accuracy_on_the_test_set(name: str, mnist_root: Path) -> None:
    data = MNISTDataModule(str(mnist_root), "mnist")
    data.setup("test")
    test = data.parts["test"]
    assert accuracy(name, test.images, test.labels) == pytest.approx(ACCURACY[name], abs=0.05)


def test_commands_take_them_by_name(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("digits").mkdir()
    digits = load_sample(sample_root)
    for label in (3, 7):
        first = int((digits.labels == label).nonzero()[0])
        Image.fromarray(digits.images[first].numpy()).save(f"digits/{label}.png")
    quick = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    main(["predict", "--ckpt_path", "default", "--data.images", "digits", *quick])
    rows = list(csv.reader(next(Path("lightning_logs").rglob("predictions.csv")).read_text().splitlines()))
    assert [(Path(row[0]).stem, row[1]) for row in rows[1:]] == [("3", "3"), ("7", "7")]
    at = ["--data.source", "sample", "--data.root", str(sample_root), "--is_ode.images", "50"]
    main(["test", "--ckpt_path=default", *at, *quick])
    assert "on 500 test images of sample: 99" in capsys.readouterr().out
    error = fails(["test", "--ckpt_path", "defolt"], capsys)
    assert "no checkpoint defolt (trained networks that come along: default, one_step, paper, record)" in error
    refused = fails(["fit", "--ckpt_path", "default"], capsys)
    assert "error: default holds weights without the optimiser's state" in refused
    assert refused.endswith("(fit --weights default)"), "by its name, not by where it is installed"


def test_own_file_of_that_name_goes_by_its_path(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": {}}, "default")
    assert load_checkpoint("./default")["state_dict"] == {}
    assert load_checkpoint("default")["state_dict"]
    assert load_checkpoint(str(checkpoint_file("./default")))["state_dict"] == {}
    assert "error: " in fails(["test", "--ckpt_path", "./default", "--data.source", "sample"], capsys)


def test_weights_of_any_checkpoint(workdir: Path) -> None:
    """The same network, without the machine's folders and the training's state."""
    trained = Path(__file__).parent / "checkpoints" / "epoch_end.ckpt"
    main(["export", "--ckpt_path", str(trained), "--path", "small.ckpt"])
    own, small = (ClassifierModule.load_from_checkpoint(path).net.eval() for path in (trained, "small.ckpt"))
    images = normalise(torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8))
    torch.testing.assert_close(small(images), own(images), rtol=0, atol=0)
    before, after = (load_checkpoint(path)["datamodule_hyper_parameters"] for path in (trained, "small.ckpt"))
    assert set(before) - set(after) == {"root", "images"}
    assert after["val_size"] == before["val_size"]
    assert Path("small.ckpt").stat().st_size < trained.stat().st_size


FONTS = [f"DejaVu{name}" for name in ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "Serif-Italic", "SansMono")]
FONTS += ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10"]


def rendered(index: int, folder: Path) -> None:
    """A digit in one of ten fonts: any size, dark or light, grey or coloured, some noisy or turned by their EXIF."""
    rng = random.Random(index)
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FONTS[(index + index // 10 * 3) % 10]}.ttf"
    size, is_dark, turned = rng.choice((40, 80, 120, 200)), index % 2 == 0, index % 4 == 1
    side, paper = size * 8 // 5, 255 * is_dark
    ink = tuple(rng.randrange(110) if is_dark else rng.randrange(150, 256) for _ in range(3))
    picture = Image.new("RGB", (side, side), (paper,) * 3)
    letter = ImageFont.truetype(str(font), size)
    ImageDraw.Draw(picture).text((side / 2, side / 2), str(index % 10), font=letter, fill=ink, anchor="mm")
    if index % 3 == 0:
        noise = np.random.default_rng(index).normal(0, 15, (side, side, 1))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    picture = picture.convert(rng.choice(("RGB", "L")))
    exif = Image.Exif()
    if turned:  # stored a quarter to the left, to be shown a quarter to the right
        exif[0x0112] = 6
        picture = picture.rotate(90)
    picture.save(folder / f"{index:02d}.jpg", exif=exif, quality=92)


def test_rendered_digits_are_read(tmp_path: Path) -> None:
    """Each digit twice, in two fonts."""
    for index in range(20):
        rendered(index, tmp_path)
    images, paths, unreadable = load_pictures([tmp_path], read_digit)
    assert (len(paths), unreadable) == (20, [])
    assert int((predicted(load_trained("default").net, images) == torch.arange(20) % 10).sum()) >= 18
