"""FolderDataModule: your own pictures and classes, a folder for each class."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from typing_extensions import override

from odenet_lightning.augment import Augmentation
from odenet_lightning.data.base import ImageDataModule
from odenet_lightning.data.class_folders import PARTS, Listing, class_folders, listing, part_folders
from odenet_lightning.data.digits import Digits, ImageShape, split_stratified
from odenet_lightning.data.picture_files import FolderError, printable, read_all, read_picture

LARGEST_MEMORY = 4 * 2**30  # bytes that all images may take
NAMED = 20  # pictures that are named one by one when they cannot be read


class FolderDataModule(ImageDataModule):
    """Your own pictures: a folder of folders, each a class with its name, as torchvision's `ImageFolder` has them.

    `root/CLASS/...`: validation and test are cut from each class at random. Or `root/train/CLASS/...` with folders
    `val` and `test` beside `train`, whose classes are among those of `train`; a missing part is cut from `train`.
    Classes are numbered in the order of their names. Pictures lie at any depth in the folder of their class; hidden
    files, and files whose names do not end like a picture's, are skipped.

    Pictures of any kind and size are turned upright (EXIF), laid on white where they are transparent, and stretched to
    `image_size`; of animated ones the first frame is taken. What cannot be read is named and left out. The images are
    kept in memory, as uint8. Not for sets that take more than 4 GiB in that form.

    Args:
        root: the folder. If it holds `train`, perhaps `val` and `test`, and no other folders, these are the parts.
        image_size: the images' height and width, or one number for both.
        colour: three channels (red, green, blue); false for one, grey.
        val_share: the share of each class that is cut from it for validation.
        test_share: the share that is cut for the test.
        batch_size: images per step and process.
        augment: what is done to training images: true for shifts of up to a pixel each way, false for nothing, or an
            `Augmentation`.
        split_seed: seed of the cut.
        images: your own pictures for `predict`: a folder, a file, or a list of them.
    """

    def __init__(
        self,
        root: str = "pictures",
        image_size: int | tuple[int, int] = 32,
        colour: bool = True,
        val_share: float = 0.1,
        test_share: float = 0.1,
        batch_size: int = 64,
        augment: bool | Augmentation = True,
        split_seed: int = 0,
        images: list[str] | str | None = None,
    ) -> None:
        super().__init__(batch_size, augment, split_seed, images)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size!r}")
        for name, share in (("val_share", val_share), ("test_share", test_share)):
            if not 0 < share < 0.5:
                raise ValueError(f"{name} must be more than 0 and less than 0.5, not {share!r}")
        self.save_hyperparameters(ignore=["augment"])
        self.hparams["augment"] = augment if isinstance(augment, bool) else type(augment).__name__
        self.root, self.size, self.colour = Path(root), (height, width), colour
        self.val_share, self.test_share = val_share, test_share

    @property
    @override
    def image_shape(self) -> ImageShape:
        return (3 if self.colour else 1, *self.size)

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        return tuple(class_folders(part_folders(self.root)["train"]))

    @override
    def load_parts(self) -> dict[str, Digits]:
        self.digits_used = printable(self.root.resolve().name)
        names = self.class_names
        listed = {part: listing(folder, names) for part, folder in part_folders(self.root).items()}
        check_memory(sum(len(files.paths) for files in listed.values()), self.image_shape)
        read = {part: self._read_part(part, files) for part, files in listed.items()}
        missing = [part for part in ("val", "test") if part not in read]
        counts = read["train"].labels.bincount(minlength=len(names)).tolist()
        for name, count in zip(names, counts, strict=True):
            if count <= len(missing):
                raise FolderError(
                    f"class '{printable(name)}' has {count} picture(s) to train on that can be read, and needs at "
                    f"least {len(missing) + 1}: add some, or remove its folder"
                )
        shares = (self.val_share if "val" in missing else 0, self.test_share if "test" in missing else 0)
        cut = split_stratified(read["train"], *shares, self.split_seed)
        parts = {part: cut[part] if part == "train" or part in missing else read[part] for part in PARTS}
        for part, digits in parts.items():
            tell(part, digits, names)
        return parts

    def _read_part(self, part: str, files: Listing) -> Digits:
        found = read_all(files.paths, self.read)
        bad = [(path, why) for path, why in zip(files.paths, found, strict=True) if isinstance(why, str)]
        tell_unreadable(part, bad)
        good = [(image, label) for image, label in zip(found, files.labels, strict=True) if isinstance(image, Tensor)]
        if not good:
            raise FolderError(f"none of the {len(found)} pictures of {part} in {self.root} can be read")
        images, labels = zip(*good, strict=True)
        return Digits(torch.stack(images), torch.tensor(labels))

    @override
    def read(self, path: Path) -> Tensor:
        return read_picture(path, self.image_shape)


def check_memory(count: int, image_shape: ImageShape) -> None:
    """Refuse pictures that would take too much memory, before they are read."""
    needed = count * math.prod(image_shape)
    if needed > LARGEST_MEMORY:
        raise FolderError(
            f"{count:,} pictures of {' x '.join(map(str, image_shape))} take {needed / 2**30:.1f} GiB of memory, more "
            f"than {LARGEST_MEMORY / 2**30:g}: choose a smaller --data.image_size or fewer pictures"
        )


@rank_zero_only
def tell_unreadable(part: str, bad: Sequence[tuple[Path, str]]) -> None:
    """Print which pictures of a part are left out, and why."""
    for path, why in bad[:NAMED]:
        print(f"left out of {part}: {printable(f'{path.parent.name}/{path.name}')}: {why}", file=sys.stderr)
    if len(bad) > NAMED:
        print(f"left out of {part}: {len(bad) - NAMED:,} more", file=sys.stderr)


@rank_zero_only
def tell(part: str, digits: Digits, names: Sequence[str]) -> None:
    """Print how many pictures of each class a part has."""
    counts = digits.labels.bincount(minlength=len(names)).tolist()
    each = ", ".join(f"{printable(name)} {count:,}" for name, count in zip(names, counts, strict=True))
    print(f"{part:<6} {len(digits):,} pictures: {each}", flush=True)
