"""MNIST and its relatives of the same form: their files, read, checked and split."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.datasets import EMNIST, KMNIST, MNIST, QMNIST, FashionMNIST

Source = Literal["auto", "mnist", "sample", "fashionmnist", "kmnist", "qmnist", "emnist-digits"]

# SHA-256 of the four unpacked files
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class DataError(RuntimeError):
    """The digits asked for are not there, or are not what they should be."""


@dataclass(frozen=True)
class Digits:
    """Images, uint8 `[N, 28, 28]`, and their labels, int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Digits":
        return Digits(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Digits":
        """On another device."""
        return Digits(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Relative:
    """A data set of torchvision's with 28 x 28 images and ten classes, which it downloads and checks itself."""

    open: Callable[..., MNIST]  # (root, train=..., download=...)
    folder: str
    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]


def open_emnist(root: str, **kwargs: Any) -> MNIST:
    """EMNIST's split of digits."""
    return EMNIST(root, split="digits", **kwargs)


DIGITS = tuple("0123456789")
RELATIVES = {
    "mnist": Relative(MNIST, "MNIST", tuple(MNIST.mirrors), DIGITS),
    "fashionmnist": Relative(FashionMNIST, "FashionMNIST", tuple(FashionMNIST.mirrors), tuple(FashionMNIST.classes)),
    "kmnist": Relative(KMNIST, "KMNIST", tuple(KMNIST.mirrors), tuple(KMNIST.classes)),
    "qmnist": Relative(QMNIST, "QMNIST", (QMNIST.resources["train"][0][0],), DIGITS),
    "emnist-digits": Relative(open_emnist, "EMNIST", (EMNIST.url,), DIGITS),
}


def raw_folder(root: Path, name: str = "mnist") -> Path:
    """Where torchvision keeps a set's files."""
    return root / RELATIVES[name].folder / "raw"


def is_mnist_there(root: Path) -> bool:
    """Whether all four files are under root; their content is checked on loading."""
    return all((raw_folder(root) / name).is_file() for name in MNIST_FILES)


def check_files(root: Path) -> None:
    """Refuse MNIST files that are not the originals.

    Raises:
        DataError: a file is missing, truncated or altered.
    """
    for name, expected in MNIST_FILES.items():
        path = raw_folder(root) / name
        if not path.is_file():
            raise DataError(f"{path} is missing; MNIST needs {', '.join(MNIST_FILES)} in {path.parent}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise DataError(
                f"{path} is not MNIST's file (truncated or altered, checksum differs): delete it and get it again"
            )


def load(name: str, root: Path) -> tuple[Digits, Digits]:
    """A set's training and test part.

    Raises:
        DataError: files are missing or are not what they should be.
    """
    if name == "mnist":
        check_files(root)
    try:
        parts = [RELATIVES[name].open(str(root), train=train, download=False) for train in (True, False)]
    except Exception as e:  # torchvision's readers check by assertions, sizes and reshaping
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise DataError(
            f"the files of {name} in {raw_folder(root, name)} cannot be read ({reason}): delete them and get them again"
        ) from e
    train, test = (Digits(part.data, part.targets) for part in parts)
    if name == "emnist-digits":  # stored with rows and columns exchanged
        train, test = (Digits(part.images.transpose(1, 2).contiguous(), part.labels) for part in (train, test))
    if name == "qmnist":  # the class is the first of eight columns about the writer
        train, test = (Digits(part.images, part.labels[:, 0].contiguous()) for part in (train, test))
    for part in (train, test):
        if part.images.shape != (len(part), 28, 28) or not set(part.labels.unique().tolist()) <= set(range(10)):
            raise DataError(
                f"the files of {name} in {raw_folder(root, name)} do not fit together: delete them and get them again"
            )
    return train, test


def split_off(train: Digits, val_size: int, seed: int) -> dict[str, Digits]:
    """Cut validation from the training part at random.

    Raises:
        DataError: nothing would be left to train on.
    """
    if val_size >= len(train):
        raise DataError(f"val_size must leave some of the {len(train):,} training images, not take {val_size:,}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return {
        "train": train[order[val_size:].sort().values],
        "val": train[order[:val_size].sort().values],
    }
