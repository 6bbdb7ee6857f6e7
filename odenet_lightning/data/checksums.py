"""Checksums of MNIST's files and of the sample."""

import hashlib
from pathlib import Path

import torch

from odenet_lightning.data.digits import DataError, Digits

# of the four unpacked files
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SAMPLE_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


def has_mnist(folder: Path) -> bool:
    """Whether all four files are in a folder, whatever they contain."""
    return all((folder / name).is_file() for name in MNIST_SHA256)


def check_mnist(folder: Path) -> None:
    """Refuse a folder whose files are not MNIST's originals."""
    for name, expected in MNIST_SHA256.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; MNIST needs {', '.join(MNIST_SHA256)} in {folder}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise DataError(
                f"{path} is not MNIST's file (truncated or altered, checksum differs): delete it and get it again"
            )


def is_sample(digits: Digits) -> bool:
    """Whether these are the 5,000 digits of the sample, pixels and labels."""
    data = digits.images.numpy().tobytes() + digits.labels.to(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest() == SAMPLE_SHA256
