import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from odenet_lightning.data import load_sample
from odenet_lightning.data.image_folder import like_mnist, read_digit
from odenet_lightning.data.picture_files import FolderError, load_pictures


@pytest.fixture
def digit(sample_root: Path) -> Tensor:
    """A seven in [0, 1], light on dark."""
    digits = load_sample(sample_root)
    return digits.images[digits.labels == 7][3].float() / 255


def save(path: Path, grey: Tensor, mode: str = "L", size: int = 28) -> Path:
    image = Image.fromarray((grey * 255).round().to(torch.uint8).numpy()).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    if mode == "I;16":
        image = Image.fromarray((grey * 65_535).to(torch.int32).numpy().astype("uint16")).resize((size, size))
    else:
        image = image.convert(mode)
    image.save(path)
    return path


def test_mnist_digit_comes_back_as_it_is(tmp_path: Path, digit: Tensor) -> None:
    assert torch.equal(read_digit(save(tmp_path / "7.png", digit)), (digit * 255).round().to(torch.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("dark_on_light", [False, True])
@pytest.mark.parametrize("size", [40, 300])
def test_any_size_mode_and_polarity(tmp_path: Path, digit: Tensor, mode: str, dark_on_light: bool, size: int) -> None:
    grey = 1 - digit if dark_on_light else digit
    found = read_digit(save(tmp_path / "7.png", grey, mode, size)).float() / 255
    # the same digit, a little blurred by resizing: overlap of ink rather than equality
    overlap = (found * digit).sum() / (found.norm() * digit.norm())
    assert overlap > 0.85


def test_jpeg_and_transparency(tmp_path: Path, digit: Tensor) -> None:
    overlap = []
    found = read_digit(save(tmp_path / "7.jpeg", 1 - digit, "RGB", 200)).float() / 255
    overlap.append((found * digit).sum() / (found.norm() * digit.norm()))
    ink = Image.fromarray((digit * 255).to(torch.uint8).numpy())
    picture = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    picture.putalpha(ink)  # black ink on nothing
    picture.resize((112, 112)).save(tmp_path / "clear.png")
    found = read_digit(tmp_path / "clear.png").float() / 255
    overlap.append((found * digit).sum() / (found.norm() * digit.norm()))
    assert min(overlap) > 0.85


@settings(deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 10_000),
)
def test_any_grey_picture_becomes_a_digit_or_is_refused(height: int, width: int, seed: int) -> None:
    grey = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    try:
        digit = like_mnist(grey)
    except ValueError:
        return
    assert digit.shape == (28, 28)
    assert digit.dtype == torch.uint8
    assert digit.max() == 255


def test_stroke_is_boxed_and_centred() -> None:
    grey = torch.zeros(100, 200)
    grey[10:60, 150:160] = 1.0  # a bar, far from the middle
    digit = like_mnist(grey)
    rows, columns = (digit > 128).nonzero(as_tuple=True)
    assert (rows.min().item(), rows.max().item()) == (4, 23)
    assert abs(columns.float().mean().item() - 14.0) <= 0.5
    assert columns.max() - columns.min() + 1 == 4


@pytest.mark.parametrize("dark_on_light", [True, False])
def test_noise_of_the_paper_is_no_ink(digit: Tensor, dark_on_light: bool) -> None:
    """The digit is boxed as without noise, whose far outliers would make the box larger and the digit smaller."""
    large = torch.nn.functional.interpolate(digit[None, None], size=(200, 200), mode="bilinear")[0, 0]
    picture = 1 - large if dark_on_light else large
    noise = torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) * 0.06
    clean, noisy = (like_mnist(each.clamp(0, 1)).float() for each in (picture, picture + noise))
    assert (clean - noisy).abs().mean() < 0.25 * clean.mean()


def test_folder_goes_on_past_what_it_cannot_read(tmp_path: Path, digit: Tensor) -> None:
    save(tmp_path / "good.png", digit)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    whole = save(tmp_path / "good.png", digit).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "two\nlines.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / ".hidden").write_text("not looked at")
    Image.new("L", (50, 50), 255).save(tmp_path / "blank.png")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    Image.new("L", (50, 50), 255).save(tmp_path / "pcx.png", format="PCX")
    Image.new("L", (50, 50), 0).save(tmp_path / "odd.png", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02")
    images, paths, bad = load_pictures([tmp_path], read_digit)
    assert images.shape == (1, 28, 28)
    assert [path.name for path in paths] == ["good.png"]
    assert len(bad) == 13
    assert not any("\n" in line for line in bad)
    told = "\n".join(bad)
    for part in (
        "'empty.png'",
        "'bomb.png': Image size",
        "'blank.png': nothing to see",
        r"'two\nlines.png'",
        "'pipe.png': not a file",
        "'postscript.png': not a picture",
        "'folder.png': a folder",
        "'loop.png': a link that leads nowhere",
        "'readme.txt': its name does not end like a picture's",
    ):
        assert part in told


@pytest.mark.parametrize("content", ["missing", "file", "empty", "unreadable"])
def test_folder_without_pictures_is_refused(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "folder"
    if content == "file":
        folder.write_text("")
    elif content != "missing":
        folder.mkdir()
        if content == "unreadable":
            (folder / "a.png").write_text("no picture")
    told = {
        "missing": "cannot read 'folder': no such file",
        "empty": "there is nothing in the folder",
        "file": "'folder'",
    }
    with pytest.raises(FolderError, match=told.get(content, "cannot read 'a.png': not a picture")):
        load_pictures([folder], read_digit)


def test_whatever_a_reader_raises_is_one_picture_s_fault(tmp_path: Path, digit: Tensor) -> None:
    """Pillow raises struct.error for some broken EXIF blocks."""
    for name in ("a.png", "b.png"):
        save(tmp_path / name, digit)

    def fails_once(path: Path) -> Tensor:
        if path.name == "a.png":
            raise struct.error("unpack requires a buffer of 2 bytes")
        return read_digit(path)

    _, paths, bad = load_pictures([tmp_path], fails_once)
    assert [path.name for path in paths] == ["b.png"]
    assert bad == ["'a.png': unpack requires a buffer of 2 bytes"]


def overlap(path: Path, digit: Tensor) -> float:
    """Of the ink that is read with a digit's."""
    found = read_digit(path).float()
    return float((found * digit).sum() / (found.norm() * digit.norm()))


@pytest.mark.parametrize("ink", ["white", "black"])
def test_ink_on_a_transparent_background(tmp_path: Path, digit: Tensor, ink: str) -> None:
    """The paper is the contrary of the ink."""
    picture = Image.new("RGBA", (28, 28), ink)
    picture.putalpha(Image.fromarray((digit * 255).to(torch.uint8).numpy()))
    picture.resize((84, 84)).save(tmp_path / "ink.png")
    assert overlap(tmp_path / "ink.png", digit) > 0.85


def test_a_sheet_with_transparent_margins_is_paper(tmp_path: Path, digit: Tensor) -> None:
    sheet = Image.fromarray(((1 - digit) * 255).to(torch.uint8).numpy()).convert("RGBA").resize((84, 84))
    picture = Image.new("RGBA", (100, 100))
    picture.paste(sheet, (8, 8))
    picture.save(tmp_path / "sheet.png")
    assert overlap(tmp_path / "sheet.png", digit) > 0.85
