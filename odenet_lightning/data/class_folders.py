"""Folders of pictures, one for each class: which parts, classes and files there are."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odenet_lightning.data.picture_files import FolderError, is_picture, printable

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Listing:
    """The pictures of a part, and the numbers of their classes."""

    paths: list[Path]
    labels: list[int]


def is_hidden(name: str) -> bool:
    """Whether a folder was made by a program, such as `.ipynb_checkpoints` and `__MACOSX`."""
    return name.startswith((".", "__"))


def folders_in(folder: Path) -> dict[str, Path]:
    """The folders in a folder by name, sorted."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError as e:
        raise FolderError(
            f"cannot read the folder {printable(str(folder))} ({e.strerror}): --data.root names the folder that holds "
            "one folder of pictures for each class"
        ) from e
    return {path.name: path for path in inside}


def part_folders(root: Path) -> dict[str, Path]:
    """The folders of `train` and, where they are there, `val` and `test`; root itself for `train` if it has no parts.

    Raises:
        FolderError: root cannot be read, has parts and no `train`, or has parts and other folders.
    """
    inside = folders_in(root)
    if not inside or not inside.keys() <= set(PARTS):
        refuse_other_parts(root, inside)
        return {"train": root}
    if "train" not in inside:
        raise FolderError(f"{printable(str(root))} has no folder train beside {' and '.join(inside)}")
    return inside


def refuse_other_parts(root: Path, inside: dict[str, Path]) -> None:
    """Refuse parts by other names (`valid`, `validation`), which would be taken for classes.

    Raises:
        FolderError: `train` has folders of the same names as one beside it.
    """
    classes = folders_in(inside["train"]).keys() if "train" in inside else set[str]()
    if any(classes & folders_in(folder).keys() for name, folder in inside.items() if name != "train"):
        others = ", ".join(printable(name) for name in inside if name not in PARTS)
        raise FolderError(
            f"{printable(str(root))} has a folder train with folders of classes in it, and {others} beside it: name "
            "the parts train, val and test, and move what is neither elsewhere"
        )


def class_folders(folder: Path) -> dict[str, Path]:
    """The folder of each class, by its name.

    Raises:
        FolderError: there are fewer than two, or a name is not UTF-8.
    """
    found = folders_in(folder)
    where = printable(str(folder))
    if len(found) < 2:
        has = f"only the class '{printable(next(iter(found)))}'" if found else "no folders"
        raise FolderError(f"{where} has {has}: give every class a folder of its name, and at least two of them")
    for name in found:
        if not name.isascii() and os.fsencode(name) != name.encode(errors="replace"):
            raise FolderError(f"{where} has a folder whose name is not UTF-8, '{printable(name)}': rename it")
    return found


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder at any depth; each folder is visited once, even if links form a circle."""
    found: list[Path] = []
    top, seen = Path(os.path.realpath(folder)), set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or (Path(real) != top and top.is_relative_to(real)):  # a link back, or to a folder around it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [path for path in (Path(place) / name for name in sorted(files)) if is_picture(path)]
    return found


def listing(folder: Path, names: Sequence[str]) -> Listing:
    """The pictures of a part's classes.

    Raises:
        FolderError: a class without pictures to train on, or one that is not among `names`.
    """
    inside = folders_in(folder)
    foreign = [printable(name) for name in inside if name not in names]
    if foreign:
        raise FolderError(
            f"{printable(str(folder))} has classes that train does not have: {', '.join(foreign)}; "
            "remove their folders, or add pictures of them to train"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        pictures = pictures_in(inside[name]) if name in inside else []
        paths += pictures
        labels += [label] * len(pictures)
    return Listing(paths, labels)
