"""Augmentation of whole batches, on the device where they are trained on.

torchvision's transforms draw one set of parameters per call, so all images of a batch get the same one; these
draw a set for each image.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

BACKGROUND = -1.0  # of a normalised image


class Augmentation:
    """Images to changed images, the same number and shape.

    Subclass it, implement `forward`, and name the class in `data.augment`.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return changed copies.

        Args:
            images: `[B, 1, H, W]` in [-1, 1], on any device.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method forward(images) that returns changed copies")

    def __call__(self, images: Tensor) -> Tensor:
        """Return `forward(images)`.

        Raises:
            ValueError: it is not as many images of the same shape.
        """
        changed = self.forward(images)
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            kind = f"the shape {list(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(f"{type(self).__name__} returned {kind}, needs {list(images.shape)}, the images' shape")
        return changed


class Shift(Augmentation):
    """Shifts each image by whole pixels, uniformly drawn, both ways; the background fills in.

    Args:
        pixels: the largest shift.
    """

    def __init__(self, pixels: int = 1) -> None:
        if pixels < 0:
            raise ValueError(f"pixels must not be negative, not {pixels!r}")
        self.pixels = pixels

    @override
    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        padded = F.pad(images, (self.pixels,) * 4, value=BACKGROUND)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, 1, places, places, H, W]
        rows, columns = torch.randint(0, 2 * self.pixels + 1, (2, batch), device=images.device)
        return windows[torch.arange(batch, device=images.device), :, rows, columns]


class Deform(Augmentation):
    """Turns, scales, shears, shifts and bends each image, sampled bilinearly.

    Affine parameters are uniform within plus or minus the values given. The elastic part (after Simard,
    Steinkraus and Platt 2003) is a smooth field of displacements: normal numbers on a 4 x 4 grid, between
    which it is interpolated. Not for data whose classes differ by orientation or size.

    Args:
        degrees: largest rotation.
        scale: largest relative change of size; height and width differ by up to half of it more.
        shear: largest shear, as a slope.
        shift: largest shift, in pixels.
        elastic: standard deviation of the displacements at the grid's points, in pixels; 0 for none.
    """

    GRID = 4

    def __init__(
        self, degrees: float = 10.0, scale: float = 0.1, shear: float = 0.1, shift: float = 2.0, elastic: float = 0.0
    ) -> None:
        for name, value in (
            ("degrees", degrees),
            ("scale", scale),
            ("shear", shear),
            ("shift", shift),
            ("elastic", elastic),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, and finite, not {value!r}")
        if scale >= 0.5:
            raise ValueError(f"scale must be less than 0.5, or images could vanish, not {scale!r}")
        self.degrees, self.scale, self.shear, self.shift, self.elastic = degrees, scale, shear, shift, elastic

    @override
    def forward(self, images: Tensor) -> Tensor:
        grid = F.affine_grid(self._affine(images), list(images.shape), align_corners=False)
        if self.elastic > 0:
            grid = grid + self._bend(images)
        # sampling pads with zeros, which must be the background
        sampled = F.grid_sample(images - BACKGROUND, grid, padding_mode="zeros", align_corners=False)
        return sampled + BACKGROUND

    def _affine(self, images: Tensor) -> Tensor:
        """Matrices `[B, 2, 3]` from an output pixel to where it is sampled, in units of half an image."""

        def draw(largest: float) -> Tensor:
            return (2 * torch.rand(len(images), device=images.device, dtype=images.dtype) - 1) * largest

        angle, slope = draw(math.radians(self.degrees)), draw(self.shear)
        width = 1 + draw(self.scale)
        height = width * (1 + draw(self.scale / 2))
        cos, sin = angle.cos(), angle.sin()
        across, down = draw(2 * self.shift / images.shape[3]), draw(2 * self.shift / images.shape[2])
        first = torch.stack([cos * width, (slope * cos - sin) * width, across], 1)
        second = torch.stack([sin * height, (slope * sin + cos) * height, down], 1)
        return torch.stack([first, second], 1)

    def _bend(self, images: Tensor) -> Tensor:
        """Displacements `[B, H, W, 2]`, in units of half an image."""
        batch, _, height, width = images.shape
        points = torch.randn(batch, 2, self.GRID, self.GRID, device=images.device, dtype=images.dtype)
        points = torch.stack([points[:, 0] * (2 * self.elastic / width), points[:, 1] * (2 * self.elastic / height)], 1)
        return F.interpolate(points, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
