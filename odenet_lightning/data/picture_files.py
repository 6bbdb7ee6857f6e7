"""Picture files: found, opened safely, and read as images of one shape; files that cannot be read are named."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from odenet_lightning.data.digits import ImageShape

# the formats that Pillow decodes by itself: no PostScript, no plug-ins
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".pgm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
LARGEST_PIXELS = 50_000_000  # a picture with more is refused before it is decoded


class FolderError(RuntimeError):
    """A folder of pictures that cannot be used."""


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture, and not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def printable(name: str) -> str:
    """A file's or folder's name in one line that any terminal can show."""
    return name if name.isprintable() else ascii(name)[1:-1]


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of acceptable size, not yet decoded; the first frame of an animated one."""
    if not path.is_file():  # opening a named pipe would block
        kinds = {"a folder": path.is_dir, "a link that leads nowhere": path.is_symlink, "not a file": path.exists}
        raise ValueError(next((kind for kind, holds in kinds.items() if holds()), "no such file"))
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"its name does not end like a picture's ({', '.join(sorted(SUFFIXES))})")
    with Image.open(path, formats=tuple(FORMATS)) as picture:
        if picture.width * picture.height > LARGEST_PIXELS:
            raise ValueError(f"too large ({picture.width} x {picture.height} pixels)")
        yield picture


def read_picture(path: Path, image_shape: ImageShape) -> Tensor:
    """A picture of any kind in one shape, uint8 `[C, H, W]`, or `[H, W]` where C = 1.

    It is turned upright (EXIF), laid on white where it is transparent, and stretched to H x W, bilinearly and smoothed.
    """
    channels, height, width = image_shape
    with opened(path) as picture:
        # a JPEG can be decoded at a smaller size
        picture.draft("RGB" if channels == 3 else "L", (2 * width, 2 * height))
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    if "A" in upright.getbands() or "transparency" in upright.info:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    if upright.mode[0] in "IF":  # 16 bits and more, which `convert` would clip
        levels = finite(V.pil_to_tensor(upright).float())
        # 32 bits, whole numbers or not, do not say which level is white: the largest is taken for it
        is_known = upright.mode.startswith("I;16") or picture.format == "PPM"
        largest = 65_535 if is_known else float(levels.max().clamp(min=1))
        upright = V.to_pil_image((levels / largest * 255).clamp(0, 255).to(torch.uint8))
    plain = upright.convert("RGB" if channels == 3 else "L")
    pixels = V.pil_to_tensor(plain.resize((width, height), Image.Resampling.BILINEAR))
    return pixels if channels == 3 else pixels[0]


def finite(levels: Tensor) -> Tensor:
    """A picture's levels as they are.

    Raises:
        ValueError: one is NaN or infinite, as floating-point TIFFs may have them.
    """
    if not levels.isfinite().all():
        raise ValueError("it has pixels that are NaN or infinite")
    return levels


def explain(error: Exception) -> str:
    """An image error in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_all(paths: Sequence[Path], read: Callable[[Path], Tensor]) -> list[Tensor | str]:
    """Each picture, or why it cannot be read.

    Args:
        paths: the files.
        read: one file -> an image. Called in threads: decoding releases Python's lock.
    """

    def attempt(path: Path) -> Tensor | str:
        try:
            return read(path)
        except Exception as e:  # whatever a broken picture raises, the others are read
            return explain(e)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(attempt, paths))


def load_pictures(places: Sequence[Path], read: Callable[[Path], Tensor]) -> tuple[Tensor, list[Path], list[str]]:
    """Read pictures for predictions: files, and what is in folders, in the order of names.

    Args:
        places: files and folders; folders inside a folder are not searched, and hidden files are skipped.
        read: one file -> an image, uint8, all of one shape.

    Returns:
        The images, `[N, ...]`; their paths; and a line for each file that is no picture or cannot be read.
    """
    paths: list[Path] = []
    for place in places:
        try:
            inside = [path for path in place.iterdir() if path.name[0] != "."] if place.is_dir() else [place]
        except OSError as e:
            raise FolderError(f"cannot read the folder {printable(str(place))}: {e.strerror}") from e
        if not inside:
            raise FolderError(f"there is nothing in the folder {printable(str(place))}")
        paths += sorted(inside)
    images, good, bad = [], [], []
    for path, image in zip(paths, read_all(paths, read), strict=True):
        if isinstance(image, str):
            bad.append(f"{path.name!r}: {image}")
        else:
            images.append(image)
            good.append(path)
    if not images:
        among = f" (the first of {len(bad)} files and folders, of which none can be read)" if len(bad) > 1 else ""
        raise FolderError(f"cannot read {bad[0]}{among}")
    return torch.stack(images), good, bad
