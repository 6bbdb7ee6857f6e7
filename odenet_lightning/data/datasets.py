"""MNIST, its relatives and other known sets: their files, and how they are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torchvision.datasets import CIFAR10, EMNIST, KMNIST, MNIST, QMNIST, SVHN, FashionMNIST

from odenet_lightning.data.checksums import check_mnist, has_mnist
from odenet_lightning.data.digits import DataError, Digits, ImageShape

Source = Literal[
    "auto",
    "mnist",
    "sample",
    "digits8x8",
    "fashionmnist",
    "kmnist",
    "qmnist",
    "emnist-digits",
    "emnist-letters",
    "emnist-balanced",
    "emnist-byclass",
    "emnist-bymerge",
    "emnist-mnist",
    "cifar10",
    "svhn",
]


@dataclass(frozen=True)
class Relative:
    """A data set of torchvision's, which it downloads and checks itself.

    Attributes:
        open: (root, train=..., download=...) -> one part.
        folder: where torchvision keeps the files, under root.
        mirrors: where it downloads them from.
        class_names: of the K classes.
        image_shape: channels, height, width.
    """

    open: Callable[..., Digits]
    folder: str
    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]
    image_shape: ImageShape = (1, 28, 28)


def relative(kind: type[MNIST], names: tuple[str, ...]) -> Relative:
    """A set with MNIST's layout."""

    def opened(root: str, **kwargs: Any) -> Digits:
        part = kind(root, **kwargs)
        return Digits(part.data, part.targets)

    return Relative(opened, f"{kind.__name__}/raw", tuple(kind.mirrors), names)


def open_qmnist(root: str, **kwargs: Any) -> Digits:
    """QMNIST's parts; the first of the labels' eight columns is the class, the others describe the writer."""
    part = QMNIST(root, **kwargs)
    return Digits(part.data, part.targets[:, 0].contiguous())


def emnist(split: str) -> Relative:
    """A split of EMNIST, stored with rows and columns exchanged; the classes of `letters` are counted from 1."""
    first = int(split == "letters")

    def opened(root: str, **kwargs: Any) -> Digits:
        part = EMNIST(root, split=split, **kwargs)
        return Digits(part.data.transpose(1, 2).contiguous(), part.targets - first)

    return Relative(opened, "EMNIST/raw", (EMNIST.url,), tuple(EMNIST.classes_split_dict[split][first:]))


def open_cifar10(root: str, **kwargs: Any) -> Digits:
    """CIFAR-10's parts (Krizhevsky 2009)."""
    part = CIFAR10(root, **kwargs)
    return Digits(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))


def open_svhn(root: str, train: bool, download: bool) -> Digits:
    """The parts of Street View House Numbers, cropped (Netzer et al. 2011), without its `extra`."""
    folder = Path(root) / "SVHN"
    if download:
        folder.mkdir(parents=True, exist_ok=True)
    part = SVHN(str(folder), split="train" if train else "test", download=download)
    return Digits(torch.from_numpy(part.data).contiguous(), torch.from_numpy(part.labels))


DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RELATIVES = {
    "mnist": relative(MNIST, DIGITS),
    "fashionmnist": relative(FashionMNIST, tuple(FashionMNIST.classes)),
    "kmnist": relative(KMNIST, tuple(KMNIST.classes)),
    "qmnist": Relative(open_qmnist, "QMNIST/raw", (QMNIST.resources["train"][0][0],), DIGITS),
    **{f"emnist-{split}": emnist(split) for split in EMNIST.splits},
    "cifar10": Relative(open_cifar10, CIFAR10.base_folder, (CIFAR10.url,), CIFAR10_CLASSES, (3, 32, 32)),
    "svhn": Relative(open_svhn, "SVHN", (SVHN.split_list["train"][0],), DIGITS, (3, 32, 32)),
}


def raw_folder(root: Path, name: str = "mnist") -> Path:
    """Where torchvision keeps a set's files."""
    return root / RELATIVES[name].folder


def is_mnist_there(root: Path) -> bool:
    """Whether all four files are under root; their content is checked on loading."""
    return has_mnist(raw_folder(root))


def load(name: str, root: Path) -> tuple[Digits, Digits]:
    """A set's training and test parts."""
    if name == "mnist":
        check_mnist(raw_folder(root))
    known = RELATIVES[name]
    try:
        train, test = (known.open(str(root), train=train, download=False) for train in (True, False))
    except Exception as e:  # torchvision's readers check by assertions, sizes and reshaping
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise DataError(
            f"the files of {name} in {raw_folder(root, name)} cannot be read ({reason}): delete them and get them again"
        ) from e
    channels, *size = known.image_shape
    shape = (*size,) if channels == 1 else known.image_shape
    classes = set(range(len(known.class_names)))
    for part in (train, test):
        if part.images.shape != (len(part), *shape) or not set(part.labels.unique().tolist()) <= classes:
            raise DataError(
                f"the files of {name} in {raw_folder(root, name)} do not fit together: delete them and get them again"
            )
    return train, test


def load_digits8x8() -> Digits:
    """1,797 digits of 8 x 8 pixels that scikit-learn ships (Alpaydin and Kaynak 1998, UCI), 0 to 16 made 0 to 255."""
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 8, 8)
    return Digits(images, torch.from_numpy(labels).long())
