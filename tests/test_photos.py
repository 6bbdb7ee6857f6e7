"""Photos of digits: whatever the light and the paper, the network sees what it would see of a plain picture."""

from pathlib import Path

import pytest
import torch
from PIL import ImageDraw

from odenet_lightning import ClassifierModule
from odenet_lightning.cli import main
from odenet_lightning.data import normalise
from odenet_lightning.data.image_folder import read_digit
from tests.photos import FONTS, INK, KINDS, plain

# how alike a digit must be to that of the plain picture: a pen of another width changes it more than light does
ALIKE = {"thin pen": 0.6, "thick pen": 0.6, "blur": 0.75, "ruled paper": 0.85}


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_is_seen_as_the_plain_picture(kind: str, tmp_path: Path) -> None:
    for index, font in list(enumerate(FONTS))[::3]:
        seen = []
        for name, change in (("plain", KINDS["plain"]), ("changed", KINDS[kind])):
            change(plain(str(index), font)).save(tmp_path / f"{name}.png")
            seen.append(read_digit(tmp_path / f"{name}.png").float().flatten())
        alike = float(torch.corrcoef(torch.stack(seen))[0, 1])
        assert alike > ALIKE.get(kind, 0.95), f"{font}, {index}: {alike:.2f}"


@pytest.mark.parametrize(
    ("box", "belongs"),
    [((92, 132, 124, 147), True), ((92, 170, 124, 185), False), ((107, 132, 109, 134), False)],
    ids=["near", "far", "speck"],
)
def test_what_lies_below_a_digit(box: tuple[int, int, int, int], belongs: bool, tmp_path: Path) -> None:
    """A dash 8 pixels below a digit of 58 is part of it; one of 46 pixels below is not, nor is a speck."""
    picture = plain("3", "DejaVuSans", size=80)
    picture.save(tmp_path / "alone.png")
    ImageDraw.Draw(picture).rectangle(box, fill=INK)
    picture.save(tmp_path / "with.png")
    alone, beside = (read_digit(tmp_path / f"{name}.png").float().flatten() for name in ("alone", "with"))
    alike = float(torch.corrcoef(torch.stack([alone, beside]))[0, 1])
    assert (alike < 0.9) if belongs else (alike > 0.99)


@pytest.mark.parametrize("text", ["4 2 7", "42"])
def test_several_digits_are_refused(text: str, tmp_path: Path) -> None:
    plain(text, "DejaVuSans", size=60).save(tmp_path / "several.png")
    with pytest.raises(ValueError, match="digits side by side: give each a picture of its own"):
        read_digit(tmp_path / "several.png")


@pytest.mark.mnist
def test_rendered_digits_are_recognised(
    tmp_path: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two digits of each font in each kind of picture, by the built-in recipe's network."""
    monkeypatch.chdir(tmp_path)
    main(["fit", "--data.root", str(mnist_root), "--trainer.accelerator", "cpu", "--pictures.every_n_epochs", "0"])
    net = ClassifierModule.load_from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt").eval()
    shares = {}
    for kind, change in KINDS.items():
        labels, digits = [], []
        for index, font in enumerate(FONTS):
            for label in (index, (index + 5) % 10):
                change(plain(str(label), font)).save("digit.png")
                labels.append(label)
                digits.append(read_digit(Path("digit.png")))
        with torch.no_grad():
            right = net(normalise(torch.stack(digits))).argmax(1) == torch.tensor(labels)
        shares[kind] = float(right.float().mean())
    with capsys.disabled():
        print(shares)
    assert shares["plain"] > 0.949
    assert min(shares.values()) > 0.899  # in float32
