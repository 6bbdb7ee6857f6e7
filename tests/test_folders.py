"""One's own pictures and classes, from folders to predictions."""

import csv
import math
import os
import string
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from odenet_lightning import ClassifierModule, FolderDataModule
from odenet_lightning.cli import main
from odenet_lightning.data import FolderError, folders
from odenet_lightning.data.class_folders import pictures_in
from odenet_lightning.data.image_folder import read_digit
from odenet_lightning.data.picture_files import read_picture

QUICK = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--pictures.every_n_epochs"]


def save(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A cat for each of 10 reds and a dog for each of 20 greens."""
    for name, count in (("cat", 10), ("dog", 20)):
        for index in range(count):
            colour = (10 * index, 0, 0) if name == "cat" else (0, 10 * index, 0)
            save(tmp_path / "pets" / name / f"{index}.png", colour)
    return tmp_path / "pets"


def load(root: Path, **settings: object) -> FolderDataModule:
    data = FolderDataModule(str(root), **{"image_size": (4, 6), **settings})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command fails."""
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_parts_are_stratified_disjoint_and_complete(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load(pets)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 4, 6)
    counts = {part: digits.labels.bincount().tolist() for part, digits in data.parts.items()}
    assert counts == {"train": [8, 16], "val": [1, 2], "test": [1, 2]}
    images = torch.cat([digits.images for digits in data.parts.values()])
    assert (images.dtype, images.shape) == (torch.uint8, (30, 3, 4, 6))
    labels = torch.cat([digits.labels for digits in data.parts.values()])
    assert sorted(images[labels == 0][:, 0, 0, 0].tolist()) == [10 * index for index in range(10)]
    assert sorted(images[labels == 1][:, 1, 0, 0].tolist()) == [10 * index for index in range(20)]
    assert "train  24 pictures: cat 8, dog 16" in capsys.readouterr().out
    batch, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch.shape == (3, 3, 4, 6)
    assert batch.min() >= -1.0
    assert batch.max() <= 1.0


def test_the_cut_depends_on_its_seed_alone(pets: Path) -> None:
    first, again, other = (load(pets, split_seed=seed).parts["test"].images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_grey(pets: Path) -> None:
    data = load(pets, colour=False)
    assert data.image_shape == (1, 4, 6)
    assert data.parts["train"].images.shape == (24, 4, 6)
    assert data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0].shape == (3, 1, 4, 6)


@pytest.mark.parametrize("given", [("train", "val", "test"), ("train", "test"), ("train", "val"), ("train",)])
def test_parts_of_their_own(pets: Path, tmp_path: Path, given: tuple[str, ...]) -> None:
    for part in given:
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / part).symlink_to(pets)
    sizes = {part: len(digits) for part, digits in load(tmp_path / "set").parts.items()}
    cut = {"val": 3, "test": 3}
    expected = {part: 30 if part in given else size for part, size in cut.items()}
    assert sizes == {"train": 30 - sum(size for part, size in cut.items() if part not in given), **expected}


def test_a_class_named_train_is_a_class(pets: Path) -> None:
    save(pets / "train" / "0.png")
    assert FolderDataModule(str(pets)).class_names == ("cat", "dog", "train")


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


def test_many_bad_pictures_are_counted(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(25):
        (pets / "dog" / f"bad{index}.png").write_text("")
    load(pets)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 21
    assert told[-1] == "left out of train: 5 more"


def test_links_in_circles_are_followed_once(pets: Path) -> None:
    (pets / "cat" / "loop").symlink_to(pets / "cat")
    (pets / "cat" / "up").symlink_to(pets)
    (pets / "cat" / "more").mkdir()
    save(pets / "cat" / "more" / "deep.jpg")
    assert len(pictures_in(pets / "cat")) == 11
    (pets.parent / "elsewhere").symlink_to(pets)
    (pets / "cow").symlink_to(pets / "dog")
    assert len(pictures_in(pets.parent / "elsewhere" / "cow")) == 20


def empty_class(root: Path) -> None:
    (root / "cow").mkdir()


def unreadable_class(root: Path) -> None:
    empty_class(root)
    (root / "cow" / "0.png").write_text("")


def few(root: Path) -> None:
    for index in range(2):
        save(root / "cow" / f"{index}.png")


def one_class(root: Path) -> None:
    (root / "dog").rename(root.parent / "dog")


def no_class(root: Path) -> None:
    one_class(root)
    (root / "cat").rename(root.parent / "cat")


def no_root(root: Path) -> None:
    root.rename(root.parent / "elsewhere")


def as_parts(root: Path, *parts: str) -> None:
    root.rename(root.parent / "all")
    root.mkdir()
    for part in parts:
        (root / part).symlink_to(root.parent / "all")


def without_train(root: Path) -> None:
    as_parts(root, "val", "test")


def other_names(root: Path) -> None:
    as_parts(root, "train", "test")
    save(root / "valid" / "cat" / "0.png")


def only_in_test(root: Path) -> None:
    as_parts(root, "train")
    save(root / "test" / "cow" / "0.png")


def corrupt_test(root: Path) -> None:
    as_parts(root, "train")
    for name in ("cat", "dog"):
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "0.png").write_text("no picture")


def not_text(root: Path) -> None:
    Path(os.fsdecode(bytes(root) + b"/\xff")).mkdir()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (empty_class, r"class 'cow' has 0 picture\(s\) to train on that can be read, and needs at least 3"),
        (unreadable_class, r"class 'cow' has 0 picture\(s\)"),
        (few, r"class 'cow' has 2 picture\(s\)"),
        (one_class, "has only the class 'cat': give every class a folder of its name, and at least two"),
        (no_class, "has no folders: give every class a folder"),
        (no_root, r"cannot read the folder .*pets \(No such file or directory\): --data.root names"),
        (
            other_names,
            "has a folder train with folders of classes in it, and valid beside it: name the parts train, val",
        ),
        (without_train, "has no folder train beside test and val"),
        (only_in_test, "test has classes that train does not have: cow"),
        (corrupt_test, "none of the 2 pictures of test in .*pets can be read"),
        (not_text, r"has a folder whose name is not UTF-8, '\\udcff'"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(pets: Path, harm: Callable[[Path], None], told: str) -> None:
    harm(pets)
    with pytest.raises(FolderError, match=told) as error:
        load(pets)
    assert "\n" not in str(error.value)


def test_pictures_that_take_too_much_memory_are_refused_unread(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "read_all", lambda *_: pytest.fail("they must not be read"))
    with pytest.raises(FolderError, match=r"30 pictures of 3 x 9000 x 9000 take 6\.8 GiB of memory, more than 4"):
        load(pets, image_size=9_000)


@pytest.mark.parametrize(
    "settings", [{"image_size": 0}, {"val_share": 0}, {"test_share": 0.5}, {"batch_size": 0}, {"image_size": (4, -1)}]
)
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FolderDataModule(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of each of 26 letters, 40 x 32, light on dark in colours and places of their own."""
    root, generator = tmp_path_factory.mktemp("made") / "letters", torch.Generator().manual_seed(0)
    for letter in string.ascii_uppercase:
        (root / letter).mkdir(parents=True)
        for index in range(24):
            draws = torch.rand(9, generator=generator)
            paper, ink = ((scale + draws[at : at + 3] * 80).int().tolist() for scale, at in ((0, 0), (170, 3)))
            across, down, size = ((draws[6:] - 0.5) * 4 + torch.tensor([16.0, 20.0, 24.0])).tolist()
            picture = Image.new("RGB", (32, 40), tuple(paper))
            font = ImageFont.load_default(size)
            ImageDraw.Draw(picture).text((across, down), letter, tuple(ink), font, anchor="mm")
            picture.save(root / letter / f"{index}.png")
    return root


def test_twenty_six_classes_in_colour_from_the_command_line(
    letters: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "FolderDataModule", "--data.root", str(letters), "--data.image_size", "[40, 32]"]
    few = ["--data.batch_size", "32", "--data.augment", "false", "--trainer.max_epochs", "6"]
    main(["fit", *data, *few, *QUICK, "6"])
    output = capsys.readouterr().out
    assert "letters (520 to train, 52 to validate)" in output
    best = ["--ckpt_path", "lightning_logs/version_0/checkpoints/best.ckpt"]
    assert f"predict          python -m odenet_lightning predict {best[0]} {best[1]}" in output

    main(["test", *best])  # the data come with the checkpoint
    accuracy = float(capsys.readouterr().out.split("test images of letters: ")[1].split("%")[0])
    assert accuracy > 50, "chance is 4 %"

    Path("bad.png").write_text("no picture")
    pictures = [str(letters / letter / "3.png") for letter in "QX"]
    main(["predict", *best, "--data.images", str([*pictures, str(letters / "M"), "bad.png", "none.png"])])
    told = capsys.readouterr()
    assert "26 pictures classified, 2 skipped" in told.out
    assert "skipped 'bad.png': not a picture\nskipped 'none.png': no such file" in told.err
    with Path("lightning_logs/version_1/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows[:2]] == pictures
    assert sum(row["prediction"] == "M" for row in rows[2:]) > 12
    for row in rows:
        shares = {name[2:-1]: float(share) for name, share in row.items() if name.startswith("p(")}
        assert list(shares) == list(string.ascii_uppercase)
        assert sum(shares.values()) == pytest.approx(1, abs=2e-3)
        ranked = sorted(shares, key=lambda name: -shares[name])
        assert float(row["confidence"]) == shares[row["prediction"]] == shares[ranked[0]]
        assert float(row["runner_up_confidence"]) == shares[row["runner_up"]] == shares[ranked[1]]

    module = ClassifierModule.load_from_checkpoint(best[1])
    assert module.class_names == list(string.ascii_uppercase)
    assert module(torch.zeros(2, 3, 40, 32)).shape == (2, 26)


@pytest.fixture
def trained(pets: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The checkpoint of a network for cats and dogs, one step old."""
    few = ["--data.image_size", "[8, 6]", "--data.batch_size", "8", "--trainer.max_epochs", "1"]
    net = ["--model.net", "ResNet", "--model.net.channels", "2", "--model.net.blocks", "0"]
    main(["fit", "--data", "FolderDataModule", "--data.root", str(pets), *few, *net, *QUICK, "1"])
    capsys.readouterr()
    return ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]


def test_a_checkpoint_knows_its_data(
    trained: list[str], pets: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for args, told in (
        (["--data.image_size", "9"], "images of 3 x 8 x 6 in 2 classes, and the data have 3 x 9 x 9 in 2 classes"),
        (["--data", "MNISTDataModule", "--data.source", "sample"], "the data have 1 x 28 x 28 in 10 classes"),
    ):
        assert told in fails(["test", *trained, *args], capsys)
    (pets / "cat").rename(pets / "cow")
    told = "trained on 2 classes, the data have 2; missing there: cat; unknown to the network: cow"
    assert told in fails(["test", *trained], capsys)
    pets.rename(tmp_path / "moved")
    assert "cannot read the folder" in fails(["test", *trained], capsys)
    main(["predict", *trained, "--data.images", str(tmp_path / "moved/dog/3.png")])
    assert "3.png  " in capsys.readouterr().out, "the folders of the classes are not needed"


def test_only_fifty_predictions_are_printed(
    trained: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(53):
        save(workdir / "many" / f"{index:02}.png")
    main(["predict", *trained, "--data.images", "many"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(".png  " in line for line in lines) == 50
    assert "... and 3 more in the table" in lines


def test_names_of_any_kind_are_kept(pets: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that would be class paths, files or YAML elsewhere, and of formulas in figures."""
    names = ["os.system", "a\nb", "$x_{$", "null", "{a: 1}", "schön"]
    for name in names:
        for index in range(4):
            save(pets / name / f"{index}.png")
    args = ["--data", "FolderDataModule", "--data.root", str(pets), "--data.image_size", "8", "--data.batch_size", "8"]
    main(["fit", *args, "--trainer.max_epochs", "1", "--model.net", "ResNet", "--model.net.blocks", "0", *QUICK, "1"])
    out = capsys.readouterr().out
    assert "a\\nb 2" in out
    assert "\npictures         pets (" in out
    best = ["--ckpt_path", "lightning_logs/version_0/checkpoints/last.ckpt"]
    module = ClassifierModule.load_from_checkpoint(best[1])
    assert module.class_names == sorted(["cat", "dog", *names])
    main(["test", *best])
    main(["predict", *best, "--data.images", str(pets / "cat")])
    assert "10 pictures classified" in capsys.readouterr().out
