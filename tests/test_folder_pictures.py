"""Pictures of any kind and size, and those that cannot be read."""

import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from odenet_lightning.data.image_folder import read_digit
from odenet_lightning.data.picture_files import read_picture
from tests.pets import load, save


def rgb(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None].expand(3, 4, 6)


def sixteen(path: Path) -> None:
    Image.fromarray((torch.ones(8, 8) * 32_768).numpy().astype("uint16")).save(path)


def see_through(path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(path)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def thirty_two(path: Path) -> None:
    """Whole numbers of 32 bits, which do not say which of them is white."""
    Image.new("I", (8, 8), 3_000).save(path)


def turned(path: Path) -> None:
    """Red on the left as the camera held it, which is above when it is upright."""
    picture = Image.new("RGB", (8, 12), "blue")
    picture.paste("red", (0, 0, 4, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    picture.save(path, exif=exif)


def of_mode(mode: str, colour: str) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (8, 8), colour).convert(mode).save(path)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("16.png", sixteen, rgb(127, 127, 127)),
        ("whole.tiff", thirty_two, rgb(255, 255, 255)),
        ("palette.png", of_mode("P", "red"), rgb(255, 0, 0)),
        ("bit.png", of_mode("1", "white"), rgb(255, 255, 255)),
        ("cmyk.jpg", of_mode("CMYK", "white"), rgb(255, 255, 255)),
        ("clear.png", see_through, rgb(255, 255, 255)),
        ("animated.gif", animated, rgb(255, 0, 0)),
        ("plain.webp", of_mode("RGB", "white"), rgb(255, 255, 255)),
        ("plain.tiff", of_mode("RGB", "lime"), rgb(0, 255, 0)),
        ("plain.BMP", of_mode("RGB", "lime"), rgb(0, 255, 0)),
    ],
)
def test_pictures_of_any_kind(tmp_path: Path, name: str, make: Callable[[Path], None], expected: Tensor) -> None:
    make(tmp_path / name)
    found = read_picture(tmp_path / name, (3, 4, 6))
    assert (found.int() - expected.int()).abs().max() <= 2
    grey = read_picture(tmp_path / name, (1, 4, 6))
    assert grey.shape == (4, 6)


def test_a_picture_is_turned_upright_and_resized(tmp_path: Path) -> None:
    turned(tmp_path / "turned.png")
    found = read_picture(tmp_path / "turned.png", (3, 4, 6))
    assert found[0, 0].tolist() == [255] * 6
    assert found[2, 3].tolist() == [255] * 6


def cut(path: Path) -> None:
    Image.effect_noise((60, 60), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])


def pretend(path: Path, width: int, height: int) -> None:
    """A small picture whose head claims another size."""
    data = bytearray(save(path).read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero.png": (lambda path: path.write_bytes(b""), "not a picture"),
    "text.png": (lambda path: path.write_text("no picture"), "not a picture"),
    "cut.png": (lambda path: cut(path), "truncated"),
    "bomb.png": (lambda path: pretend(path, 30_000, 30_000), "exceeds limit"),
    "large.png": (lambda path: pretend(path, 10_000, 6_000), "too large (10000 x 6000 pixels)"),
    "loop.png": (lambda path: path.symlink_to(path), "a link that leads nowhere"),
    "pipe.png": (lambda path: os.mkfifo(path), "not a file"),
    "two\nlines.png": (lambda path: path.write_text("no picture"), "not a picture"),
}


def test_bad_pictures_are_named_and_left_out(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (make, _) in BAD_FILES.items():
        make(pets / "cat" / name)
    (pets / "cat" / "notes.txt").write_text("passed over")
    (pets / "cat" / ".hidden.png").write_text("passed over")
    save(pets / ".ipynb_checkpoints" / "0.png")
    save(pets / "__MACOSX" / "0.png")
    data = load(pets)
    assert sum(len(digits) for digits in data.parts.values()) == 30
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(BAD_FILES), told
    for name, (_, why) in BAD_FILES.items():
        shown = name.replace("\n", "\\n")
        assert any(line.startswith(f"left out of train: cat/{shown}: ") and why in line for line in told), name


@pytest.mark.parametrize("level", [math.nan, math.inf])
@pytest.mark.parametrize("read", [lambda path: read_picture(path, (1, 9, 12)), read_digit], ids=["class", "digit"])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, read: Callable[[Path], Tensor], level: float) -> None:
    levels = torch.zeros(40, 40)
    levels[10:30, 18:22], levels[0, 0] = 200.0, level
    Image.fromarray(levels.numpy()).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="NaN or infinite"):
        read(tmp_path / "a.tif")
