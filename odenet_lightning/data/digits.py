"""Images and their labels, and how they are split."""

from dataclasses import dataclass

import torch
from torch import Tensor

ImageShape = tuple[int, int, int]  # channels, height, width


class DataError(RuntimeError):
    """The images asked for are missing, or are not what they should be."""


@dataclass(frozen=True)
class Digits:
    """Images, uint8, grey `[N, H, W]` or in colour `[N, 3, H, W]`, and their labels, int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Digits":
        return Digits(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Digits":
        """Return them on another device."""
        return Digits(self.images.to(device), self.labels.to(device))

    def shuffled(self, seed: int) -> "Digits":
        """Return them in an order drawn by a seed, so that the first are a random sample (files may be sorted)."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))]


def split_stratified(digits: Digits, val_share: float, test_share: float, seed: int) -> dict[str, Digits]:
    """Cut validation and test from each class at random: the same share of every class, at least one image.

    Args:
        digits: all images; of the n in a class, n * share are cut, rounded.
        val_share: share of validation; 0 for none.
        test_share: share of the test; 0 for none.
        seed: of the random draw.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for label in digits.labels.unique():
        index = (digits.labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        test, val = (max(1, round(share * len(index))) if share else 0 for share in (test_share, val_share))
        for part, piece in zip(("test", "val", "train"), index.tensor_split((test, test + val)), strict=True):
            parts[part].append(piece)
    return {part: digits[torch.cat(index).sort().values] for part, index in parts.items()}


def split_off(train: Digits, val_size: int, seed: int) -> dict[str, Digits]:
    """Cut validation from the training part at random."""
    if val_size >= len(train):
        raise DataError(f"val_size must leave some of the {len(train):,} training images, not take {val_size:,}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return {
        "train": train[order[val_size:].sort().values],
        "val": train[order[:val_size].sort().values],
    }
