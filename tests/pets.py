"""Pictures in folders, one for each class."""

from pathlib import Path

from PIL import Image

from odenet_lightning import FolderDataModule


def save(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def load(root: Path, **settings: object) -> FolderDataModule:
    data = FolderDataModule(str(root), **{"image_size": (4, 6), **settings})  # type: ignore[arg-type]
    data.setup("fit")
    return data
