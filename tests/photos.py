"""Rendered digits as people photograph them: ten fonts, ten kinds of pictures."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono",
    "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmss10", "cmtt10",
)  # fmt: skip
SIZE, PAPER, INK = 200, 225, 45


def plain(text: str, font: str, size: int = 110) -> Image.Image:
    """Dark on light, a little off the centre."""
    path = Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{font}.ttf"
    picture = Image.new("L", (SIZE, SIZE), PAPER)
    drawn = ImageDraw.Draw(picture)
    drawn.text((SIZE // 2 + 8, SIZE // 2 - 5), text, fill=INK, font=ImageFont.truetype(str(path), size), anchor="mm")
    return picture


def as_picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))


def falling_light(picture: Image.Image, share: float) -> Image.Image:
    """Light that falls off by this share from the top to the bottom."""
    return as_picture(np.asarray(picture, float) * np.linspace(1, 1 - share, SIZE)[:, None])


def framed(picture: Image.Image) -> Image.Image:
    ImageDraw.Draw(picture).rectangle((8, 8, SIZE - 9, SIZE - 9), outline=INK, width=3)
    return picture


def ruled(picture: Image.Image) -> Image.Image:
    """Lines through the picture, through the digit, too."""
    values = np.asarray(picture, float).copy()
    for row in range(15, SIZE, 28):
        values[row : row + 2] = np.minimum(values[row : row + 2], 130)
    return as_picture(values)


def noisy(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, float)
    return as_picture(values + np.random.default_rng(0).normal(0, 18, values.shape))


def transparent(picture: Image.Image) -> Image.Image:
    """White ink without paper."""
    ink = as_picture(255 * (PAPER - np.asarray(picture, float)) / (PAPER - INK))
    result = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    result.putalpha(ink)
    return result


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "plain": lambda picture: picture,
    "light falling off by 30 %": lambda picture: falling_light(picture, 0.3),
    "light falling off by 50 %": lambda picture: falling_light(picture, 0.5),
    "frame": framed,
    "ruled paper": ruled,
    "noise": noisy,
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(3)),
    "thin pen": lambda picture: picture.filter(ImageFilter.MaxFilter(3)),
    "thick pen": lambda picture: picture.filter(ImageFilter.MinFilter(7)),
    "transparent": transparent,
}
