"""python -m odenet_lightning.benchmarks.evaluate --root DIR: the test digits, by this project and by the post's way.

The same untrained network of the post at its tolerance of 0.1. The post's way: torchvision's data set with a
transform for each image, a loader of four processes with batches of 16, torchdiffeq's adjoint solve. This
project's: `Trainer.test` with its own data module and Dopri5, as `python -m odenet_lightning test` has it.
Both are timed from the made data set and network to the accuracy.
"""

import argparse
import itertools
import logging
import statistics
import time
import warnings

import torch
import torchdiffeq
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from odenet_lightning.cli.memory import keep_freed_memory
from odenet_lightning.data import MNISTDataModule, normalise
from odenet_lightning.models import ODENet
from odenet_lightning.module import ClassifierModule
from odenet_lightning.solvers import Dopri5


def make_net() -> ODENet:
    """The post's network, always with the same weights."""
    torch.manual_seed(0)
    return ODENet(solver=Dopri5(0.1, 0.1, first_step="warm")).eval()


def post_seconds(root: str) -> tuple[float, float]:
    """Seconds and accuracy of the post's loop."""
    net = make_net()
    times = torch.tensor([0.0, 1.0])

    def forward(images: Tensor) -> Tensor:
        states = torchdiffeq.odeint_adjoint(net.block.field, net.stem(images), times, rtol=0.1, atol=0.1)
        assert isinstance(states, Tensor)
        return net.head(states[1])

    change = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
    loader = DataLoader(MNIST(root, train=False, transform=change), batch_size=16, shuffle=True, num_workers=4)
    begin, right, count = time.perf_counter(), 0, 0
    with torch.no_grad():
        for images, labels in loader:
            right += int((forward(images).argmax(1) == labels).sum())
            count += len(labels)
    return time.perf_counter() - begin, right / count


def our_seconds(root: str) -> tuple[float, float]:
    """Seconds and accuracy of this project's `test`."""
    module, data = ClassifierModule(make_net()), MNISTDataModule(root=root, source="mnist")
    data.setup("test")
    for images, _ in itertools.islice(data.train_dataloader(), 4):  # training leaves a first step to try
        with torch.no_grad():
            module.train().forward(normalise(images))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    begin = time.perf_counter()
    (metrics,) = trainer.test(module, data, verbose=False)
    return time.perf_counter() - begin, metrics["test/acc"]


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST/raw")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the command line does; the post's way has its good of it, too
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pairs = [(our_seconds(args.root), post_seconds(args.root)) for _ in range(args.repeats)]
    ours, posts = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
    ratios = [a[0] / b[0] for a, b in pairs]
    print(f"torch {torch.__version__}, {args.threads} threads, n = {args.repeats} pairs of runs")
    print(f"ours {ours:.2f} s ({pairs[0][0][1]:.2%} right), the post's way {posts:.2f} s ({pairs[0][1][1]:.2%} right)")
    print(f"ratio {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")


if __name__ == "__main__":
    main()
