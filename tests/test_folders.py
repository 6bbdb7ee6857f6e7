"""One's own pictures, a folder for each class: how they are read, split and refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from odenet_lightning import FolderDataModule
from odenet_lightning.data import FolderError, folders
from odenet_lightning.data.class_folders import pictures_in
from tests.pets import load, save


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
