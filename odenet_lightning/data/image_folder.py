"""Your own pictures of digits: any size and polarity -> 28 x 28 like MNIST's."""

from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from odenet_lightning.data.photo import ink_of
from odenet_lightning.data.picture_files import finite, opened

BOX = 20  # MNIST fits a digit into 20 x 20 pixels ...
SIZE = 28  # ... and centres its mass in 28 x 28 (LeCun et al. 1998)
LARGEST_SIDE = 320  # pixels; larger pictures are shrunk to this, which leaves about ten pixels for one of MNIST's


def read_digit(path: Path) -> Tensor:
    """One picture as a digit, uint8 `[28, 28]`, light on dark."""
    with opened(path) as picture:
        picture.draft("L", (512, 512))  # a JPEG can be decoded at a smaller size
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        opaque = upright.convert("RGBA") if "A" in upright.getbands() or "transparency" in upright.info else upright
        if opaque.mode == "RGBA":
            opaque = Image.alpha_composite(Image.new("RGBA", opaque.size, paper_of(opaque)), opaque)
        if opaque.mode == "1" and min(opaque.size) > 2 * SIZE:  # dithering: blurred dots give back the greys
            opaque = opaque.convert("L").filter(ImageFilter.BoxBlur(max(opaque.size) / 100))
        if opaque.mode.startswith(("I", "F")):
            grey = finite(V.pil_to_tensor(opaque)[0].to(torch.float32))
            grey = grey / grey.max().clamp(min=1.0)
        else:
            grey = V.pil_to_tensor(opaque.convert("L"))[0].to(torch.float32) / 255
    return like_mnist(grey)


def paper_of(picture: Image.Image) -> str:
    """The paper behind the transparent parts of an RGBA picture: black if all that is visible is light, else white."""
    grey = V.pil_to_tensor(picture.convert("RGB").convert("L"))[0]
    alpha = V.pil_to_tensor(picture.getchannel("A"))[0]
    visible = grey[alpha > 127]
    return "black" if len(visible) and int(visible.min()) > 127 and int(alpha.min()) == 0 else "white"


def like_mnist(grey: Tensor) -> Tensor:
    """Bring a grey picture `[H, W]` in [0, 1] into MNIST's form, uint8 `[28, 28]`.

    Light on dark, paper removed (see `photo`), the ink's bounding box fitted into 20 x 20 and its centre of mass put in
    the middle of 28 x 28.

    Raises:
        ValueError: the picture shows nothing, or several digits.
    """
    if tuple(grey.shape) == (SIZE, SIZE) and is_mnist_like(grey):
        return (grey * 255).round().to(torch.uint8)
    smaller = LARGEST_SIDE / max(grey.shape)
    if smaller < 1:
        sides = [max(1, round(side * smaller)) for side in grey.shape]
        grey = V.resize(grey[None], sides, antialias=True)[0].clamp(0.0, 1.0)
    ink = torch.from_numpy(ink_of(grey.numpy().astype("float64"))).float()
    if not ink.any():
        raise ValueError("nothing to see (specks alone)")
    rows, columns = (ink.amax(1) > 0).nonzero().flatten(), (ink.amax(0) > 0).nonzero().flatten()
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = V.resize(ink[None], [height, width], antialias=True)[0].clamp(0.0, 1.0)
    small = small / small.max()
    top = centred(small.sum(1), height)
    left = centred(small.sum(0), width)
    digit = torch.zeros(SIZE, SIZE)
    digit[top : top + height, left : left + width] = small
    return (digit * 255).round().to(torch.uint8)


def is_mnist_like(grey: Tensor) -> bool:
    """Whether a 28 x 28 picture already is in MNIST's form: light on a black edge."""
    edge = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return bool(edge.max() == 0) and bool(grey.max() > 0.5)


def centred(mass: Tensor, length: int) -> int:
    """Where to start a profile of this length so that its centre of mass is at pixel SIZE / 2, as in MNIST."""
    centre = float((mass * torch.arange(length)).sum() / mass.sum())
    return min(max(round(SIZE / 2 - centre), 0), SIZE - length)
