"""How long does a test take? All test digits by this project's `test` and by the post's loop."""

import itertools
import time
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from odenet_lightning.data import normalise
from odenet_lightning.data.digits import Digits
from odenet_lightning.models import ODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Dopri5
from odenet_lightning.studies.other_libraries import by_torchdiffeq
from odenet_lightning.studies.pairs import PairStudy, Way
from odenet_lightning.studies.study import Row
from odenet_lightning.studies.training import trainer_for

TOLERANCE = 0.1  # the post's
POSTS_BATCH, POSTS_WORKERS = 16, 4


class Pictures(Dataset[tuple[Tensor, int]]):
    """Digits one by one as PIL images through torchvision's transforms, as `torchvision.datasets.MNIST` has them."""

    def __init__(self, digits: Digits) -> None:
        self.digits = digits
        self.change = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.digits.images[index].squeeze().numpy())
        return self.change(image), int(self.digits.labels[index])


@dataclass
class Evaluate(PairStudy):
    """The untrained network of the post (`ODENet`) on all test digits, from the made data set to the accuracy.

    A is `Trainer.test` with `MNISTDataModule` and a warm `Dopri5`, as `python -m odenet_lightning test` runs it; B the
    post's loop: a transform for each image, four loader processes, batches of 16, torchdiffeq's adjoint.
    """

    repeats: int = 3

    work: ClassVar[str] = "a test of all digits"
    quick: ClassVar[dict[str, Any]] = {"repeats": 3}

    def cases(self) -> list[Row]:
        """One pair."""
        return [{"a": "Trainer.test", "b": "the post's loop", "batch": POSTS_BATCH}]

    def ways(self, case: Row) -> tuple[Way, Way]:
        """Both tests."""
        del case
        return self.ours, self.posts

    def _net(self) -> ODENet:
        torch.manual_seed(self.seed)
        return ODENet(solver=Dopri5(TOLERANCE, TOLERANCE, first_step="warm")).to(self.device).eval()

    def ours(self) -> float:
        """Milliseconds of `Trainer.test`."""
        module, data = ClassifierModule(self._net()), self.data()
        for images, _ in itertools.islice(data.train_dataloader(), 4):  # training leaves a warm first step
            with torch.no_grad():
                module.train().forward(normalise(images).to(self.device))
        trainer = trainer_for(self.device)
        begin = time.perf_counter()
        trainer.test(module, data, verbose=False)
        return (time.perf_counter() - begin) * 1e3

    def posts(self) -> float:
        """Milliseconds of the post's loop."""
        net = self._net()
        solve = by_torchdiffeq(net, TOLERANCE, adjoint=True)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # on two cores: so is the post's
            loader = DataLoader(
                Pictures(self.data().parts["test"]), POSTS_BATCH, shuffle=True, num_workers=POSTS_WORKERS
            )
            begin, right = time.perf_counter(), 0
            for images, labels in loader:
                logits = net.head(solve(net.stem(images.to(self.device))))
                right += int((logits.argmax(1).cpu() == labels).sum())
        return (time.perf_counter() - begin) * 1e3
