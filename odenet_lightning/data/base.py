"""ImageDataModule: the base class of data modules that keep all images in the memory of the training device."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from typing_extensions import override

from odenet_lightning.augment import Augmentation, Shift
from odenet_lightning.data.batches import EpochOrder, EvaluationBatches, TrainingBatches
from odenet_lightning.data.digits import DataError, Digits, ImageShape
from odenet_lightning.data.picture_files import load_pictures


def normalise(images: Tensor) -> Tensor:
    """uint8 `[B, H, W]` or `[B, C, H, W]` -> float32 `[B, C, H, W]` in [-1, 1], the post's Normalize(0.5, 0.5)."""
    images = images.unsqueeze(1) if images.dim() == 3 else images
    return images.to(torch.float32).div_(127.5).sub_(1.0)


class ImageDataModule(LightningDataModule):
    """The base class of this project's data modules: a subclass loads its images in `load_parts`.

    Images are uint8 in the training device's memory; a batch is one gather, then converted and augmented. So there are
    no loader processes: they would only slow it down. The order depends on the seed (`seed_everything`) and the epoch;
    a checkpoint keeps the place in it.

    Args:
        batch_size: images per step and process.
        augment: what is done to training images: true for shifts of up to a pixel each way, false for nothing, or an
            `Augmentation`.
        split_seed: seed of the cut between training and validation.
        images: your own pictures for `predict`: a folder, a file, or a list of them.

    Attributes:
        digits_used: the name of the set, known after `setup`.
        parts: `train`, `val`, `test` and `predict`, as far as they are loaded.
        predict_paths: the files of the part `predict`.
        unreadable: a line for each of `images` that is left out.
    """

    def __init__(self, batch_size: int, augment: bool | Augmentation, split_seed: int, images: Any) -> None:
        super().__init__()
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        self.batch_size, self.split_seed = batch_size, split_seed
        self.augment = (Shift() if augment else None) if isinstance(augment, bool) else augment
        self.images: Sequence[str] | None = [images] if isinstance(images, str) else images
        self.digits_used: str | None = None
        self.parts: dict[str, Digits] = {}
        self.predict_paths: list[Path] = []
        self.unreadable: list[str] = []
        self.order_seed: int | None = None
        self.batches: TrainingBatches | None = None
        self.resumed_place: dict[str, int] | None = None
        self.hands_out_pixels = False  # in training, to a module that calls `prepare` itself

    @property
    @abstractmethod
    def image_shape(self) -> ImageShape:
        """Channels, height and width of the images; known before they are loaded."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of their labels; known before the images are loaded."""

    @abstractmethod
    def load_parts(self) -> dict[str, Digits]:
        """The images and labels of `train`, `val` and `test`; also sets `digits_used`."""

    @abstractmethod
    def read(self, path: Path) -> Tensor:
        """Read one of the user's pictures in the shape of the network's images: uint8 `[H, W]` or `[C, H, W]`."""

    @override
    def setup(self, stage: str) -> None:
        """Load and split; downloads nothing."""
        if stage == "fit":  # each draws its order from its own seed, unless it is resumed
            self.order_seed = self.resumed_place = None
        if stage == "predict":
            self._setup_predict()
        elif "train" not in self.parts:
            self.parts |= self.load_parts()

    def _setup_predict(self) -> None:
        if not self.images:
            raise DataError("predict needs your pictures, a folder or a file: --data.images DIR")
        images, self.predict_paths, self.unreadable = load_pictures([Path(place) for place in self.images], self.read)
        self.parts["predict"] = Digits(images, torch.full((len(images),), -1))

    def _place(self) -> tuple[torch.device, int, int]:
        """The device for batches, this process's rank, and the number of processes."""
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

    @override
    def val_dataloader(self) -> EvaluationBatches:
        return self._evaluation(self.parts["val"].shuffled(self.split_seed))

    @override
    def test_dataloader(self) -> EvaluationBatches:
        return self._evaluation(self.parts["test"].shuffled(self.split_seed))

    @override
    def predict_dataloader(self) -> EvaluationBatches:
        """The user's own pictures, in the order of `predict_paths`."""
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
        """Continue in the same order, whatever seed the new run has, at the same place.

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
        """uint8 `[B, H, W]` or `[B, C, H, W]` -> `[B, C, H, W]` in [-1, 1], augmented in training."""
        images = normalise(pixels)
        if self.trainer is not None:  # to float64, where that is asked for; Lightning converts too early for this hook
            images = self.trainer.precision_plugin.convert_input(images)
        return self.augment(images) if self.augment is not None and is_training else images
