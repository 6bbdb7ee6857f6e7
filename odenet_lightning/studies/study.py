"""Study: a question, as cases to measure and a figure of what was measured."""

import copy
import hashlib
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from odenet_lightning.checkpoints.read import data_class, kept_data, load_checkpoint
from odenet_lightning.data import FolderDataModule, MNISTDataModule, Source, normalise
from odenet_lightning.models import CLASSES, IMAGE_SHAPE
from odenet_lightning.solvers import Dopri5, Problem
from odenet_lightning.studies.columns import Column, Row

# of the float64 solves that others are compared with. The relu's kinks leave a solve's error at some twenty times its
# tolerance, and make smaller tolerances take minutes
REFERENCE_TOLERANCE = 1e-8

# fields that name places, not what is measured
PLACES = ("root", "ckpt_path", "trusted")


def number(row: Row, key: str) -> float:
    """A row's value that must be a number."""
    value = row[key]
    assert isinstance(value, bool | int | float), f"{key} is {value!r}"
    return float(value)


def numbers(rows: Sequence[Row], key: str) -> list[float]:
    """A column of numbers."""
    return [number(row, key) for row in rows]


def grouped(rows: Sequence[Row], *keys: str) -> dict[Any, list[Row]]:
    """Rows by their value of a key, or by their tuple of the values of several, in order."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(itemgetter(*keys)(row), []).append(row)
    return groups


@torch.no_grad()
def accurate_y1(field: nn.Module, y0: Tensor) -> Tensor:
    """The state at t = 1 in float64, by a tolerance that no case has; the field is left as it is."""
    exact = Problem(copy.deepcopy(field).double(), y0.detach().double())
    return Dopri5(REFERENCE_TOLERANCE, REFERENCE_TOLERANCE).solve(exact).y


@dataclass
class Study(ABC):
    """The base class of all studies: digits, a seed and a device.

    A study names its cases beforehand and measures them one by one, so that an interrupted one can be
    resumed. Subclasses are dataclasses; their fields are the command line's flags.

    Args:
        root: folder for data, in torchvision's layout.
        source: which digits, as in `MNISTDataModule`.
        seed: of weights, order and choice of digits.
        device: where torch computes, "cpu" or "cuda".
    """

    root: str = "data"
    source: Source = "auto"
    seed: int = 0
    device: str = "cpu"
    # values of the fields with which it runs in under a minute on the sample
    quick: ClassVar[dict[str, Any]] = {}
    # fields that choose the cases: a row does not depend on them
    sweeps: ClassVar[tuple[str, ...]] = ()
    # of the printed table, whose rows `table` makes
    columns: ClassVar[tuple[Column, ...]] = ()

    def __post_init__(self) -> None:
        # the folder of this study's files, and the rows' provenance; `run` sets both
        self.folder = Path()
        self.provenance: Row = {}
        self.digits: MNISTDataModule | None = None

    @classmethod
    def question(cls) -> str:
        """The study's question: the first line of its file."""
        return (sys.modules[cls.__module__].__doc__ or "").splitlines()[0]

    @property
    def checkpoint(self) -> str | None:
        """The path of the trained network, in studies that take one."""
        return None

    def settings(self) -> dict[str, Any]:
        """The settings that a row depends on besides its case."""
        fields = asdict(self)
        settings = {key: value for key, value in fields.items() if key not in (*PLACES, *self.sweeps)}
        if self.checkpoint:
            settings["network"] = hashlib.sha256(Path(self.checkpoint).read_bytes()).hexdigest()[:12]
        data = self.data()
        return {**settings, "source": data.digits_used, "val_size": data.val_size, "split_seed": data.split_seed}

    @abstractmethod
    def cases(self) -> list[Row]:
        """The cases in the order of their measurement, all with the same keys, no two with the same values."""

    @abstractmethod
    def measure(self, case: Row) -> Row:
        """Measure a case: always the same columns, one of them `n`, the number of measurements behind the main one."""

    @abstractmethod
    def draw(self, rows: list[Row]) -> Figure:
        """Draw what was measured."""

    def table(self, rows: list[Row]) -> list[Row]:
        """The rows of the table printed at the end."""
        return rows

    @abstractmethod
    def answer(self, rows: list[Row]) -> str:
        """One sentence, computed from the rows, that answers the study's question; printed below the table."""

    def extras(self, rows: list[Row]) -> None:  # noqa: B027 -- most have none
        """Write further files into the study's folder."""

    def check(self) -> None:
        """Refuse settings that make no sense, before anything is measured."""
        for name, value in asdict(self).items():
            values = value if isinstance(value, list) else [value]
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be a list of different values, and not an empty one: {value}")
            for each in values:
                is_number = isinstance(each, int | float) and not isinstance(each, bool)
                if is_number and not (0 < each < math.inf or (name == "seed" and each == 0)):
                    raise ValueError(f"{name} must be positive, not {each}")
        if self.checkpoint and not Path(self.checkpoint).is_file():
            raise ValueError(f"there is no checkpoint {self.checkpoint}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f'device must be "cpu", "cuda" or "cuda:N", not {self.device!r}')
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here: use --device cpu")

    def data(self) -> MNISTDataModule:
        """The digits, loaded once; a checkpoint brings its split, so that it has seen no validation digit."""
        if self.digits is None:
            checkpoint = load_checkpoint(self.checkpoint) if self.checkpoint else {}
            if data_class(checkpoint) is FolderDataModule:
                raise ValueError(f"{self.checkpoint} was trained on pictures that studies do not look into")
            kept = kept_data(checkpoint)
            split = {key: kept[key] for key in ("val_size", "split_seed") if key in kept}
            if self.source not in ("auto", kept.get("source", self.source)):
                raise ValueError(
                    f"{self.checkpoint} was trained on {kept['source']}, whose split it brings: --source auto"
                )
            self.digits = MNISTDataModule(root=self.root, source=kept.get("source", self.source), **split)
            if (self.digits.image_shape, len(self.digits.class_names)) != (IMAGE_SHAPE, CLASSES):
                raise ValueError(f"studies take 1 x 28 x 28 images of ten classes, not {self.digits.source}")
            self.digits.prepare_data()
            self.digits.setup("fit")
        return self.digits

    def chosen(self, part: str, count: int) -> Tensor:
        """Indices of `count` images of a part (of all, if it has fewer), drawn by the seed."""
        total = len(self.data().parts[part])
        return torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))[:count]

    def images(self, part: str, places: Tensor) -> tuple[Tensor, Tensor]:
        """Images of a part, `[N, 1, 28, 28]` in [-1, 1] on the device, and their labels."""
        digits = self.data().parts[part][places]
        return normalise(digits.images).to(self.device), digits.labels.to(self.device)
