"""`export`: a trained network as a program of torch.export, as an ONNX model, or as its weights alone."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from odenet_lightning import __version__
from odenet_lightning.checkpoints import WholeCheckpointIO, load_checkpoint, weights_only
from odenet_lightning.checkpoints.atomic import written_whole
from odenet_lightning.cli.app import Parser
from odenet_lightning.cli.errors import PROGRAM, UsageError
from odenet_lightning.data import MNISTDataModule, Source
from odenet_lightning.exporting import FORMATS, compare, fixed_instead, needs_fixed_steps, traced
from odenet_lightning.models import Classifier
from odenet_lightning.solvers import Solver
from odenet_lightning.trained import TrainedNetwork, load_trained

RANDOM_IMAGES = 500  # to check with, where the network's data are the user's own


def parser_of_export() -> Parser:
    """The command's flags."""
    parser = Parser(prog=f"{PROGRAM} export", description="Write a trained network for use without this package.")
    parser.add_argument("--config", action="config", help="a YAML with settings")
    parser.add_argument("--ckpt_path", type=str, required=True, help="a checkpoint, or a packaged network's name")
    parser.add_argument("--path", type=str, default="network.pt2", help="file to write: .pt2, .onnx or .ckpt (weights)")
    parser.add_argument("--solver", type=Solver | None, help="fixed-step solver for all ODE blocks (the checkpoint's)")
    parser.add_argument("--trusted", type=str | None, help="your module or package whose classes may be imported")
    parser.add_argument("--root", type=str, default="data", help="folder of the data that the file is checked on")
    parser.add_argument("--source", type=Source | None, help="the data to check on (what the network was trained on)")
    return parser


def export(args: list[str]) -> None:
    """Write a trained network to a file, once the file has given the same numbers.

    Raises:
        UsageError: another kind of file, the checkpoint's own, or a solver that chooses its steps.
        ExportError: the file gives other numbers; it is not written.
    """
    parser = parser_of_export()
    given = parser.instantiate_classes(parser.parse_args(args))
    target = Path(given["path"])
    if target.exists() and os.path.realpath(target) == os.path.realpath(given["ckpt_path"]):
        raise UsageError(f"{target} is the checkpoint itself, from which no run could be resumed then: name another")
    if target.suffix == ".ckpt":
        WholeCheckpointIO().save_checkpoint(weights_only(load_checkpoint(given["ckpt_path"])), target)
        print(f"written   {described(target)}: weights and settings, for --ckpt_path")
        return
    if target.suffix not in FORMATS:
        raise UsageError(f"cannot write {target}: name a file that ends in {', '.join(FORMATS)} or .ckpt")
    trained = load_trained(given["ckpt_path"], given["trusted"])
    for block in trained.net.ode_blocks:
        block.solver = given["solver"] or block.solver
    pixels, labels, images = images_to_check(trained, given["root"], given["source"])
    refuse_chosen_steps(trained.net, pixels, labels)
    make, again = FORMATS[target.suffix]
    content = make(traced(trained.net, trained.image_shape), notes(trained))
    agreement = compare(trained.net, again(content), pixels)
    with written_whole(target, "make room, or name another file") as partial:
        partial.write_bytes(content)
    print(f"network   {type(trained.net).__name__}, {solvers(trained.net)}")
    right = "" if labels is None else f", {float((agreement.predicted == labels).double().mean()):.2%} right"
    print(
        f"checked   on {images}: the same predictions{right}; logits differ by at most {agreement.difference:.0e} of "
        "the largest"
    )
    print(f"written   {described(target)}: {notes(trained)['input']}")


def images_to_check(trained: TrainedNetwork, root: str, source: Source | None) -> tuple[Tensor, Tensor | None, str]:
    """Test images of the data that the network was trained on, else random ones; their labels; a description."""
    source = source or trained.source
    if source is None:
        channels, *size = trained.image_shape
        shape = size if channels == 1 else trained.image_shape
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (RANDOM_IMAGES, *shape), generator=generator, dtype=torch.uint8)
        return pixels, None, f"{RANDOM_IMAGES} random images"
    # without full MNIST, the sample takes its place
    data = MNISTDataModule(root=root, source="auto" if source == "mnist" else source)
    data.prepare_data()
    data.setup("test")
    test = data.parts["test"]
    return test.images, test.labels, f"{len(test):,} test images of {data.digits_used}"


def refuse_chosen_steps(net: Classifier, pixels: Tensor, labels: Tensor | None) -> None:
    """Refuse a solver whose steps depend on the images, and name the one to take."""
    if not needs_fixed_steps(net):
        return
    told = "the number of steps in a file is fixed, and this network's solver chooses them (or is torchdiffeq's)"
    if labels is None:
        raise UsageError(f"{told}: give one in fixed steps (--solver RK4 --solver.num_steps 2)")
    instead = fixed_instead(net, pixels, labels)
    raise UsageError(
        f"{told}: give --solver RK4 --solver.num_steps {instead.solver.num_steps}, which changes {instead.changed} "
        f"of {instead.images:,} predictions, and the accuracy from {instead.accuracy:.2%} to "
        f"{instead.fixed_accuracy:.2%}"
    )


def notes(trained: TrainedNetwork) -> dict[str, str]:
    """What a user of the file needs to know."""
    channels, *size = trained.image_shape
    shape = ", ".join(map(str, size if channels == 1 else trained.image_shape))
    return {
        "input": f"pixels, uint8 [batch, {shape}], 0 to 255; the file itself divides by 127.5 and subtracts 1",
        "output": f"logits, float32 [batch, {len(trained.class_names)}]; softmax makes them probabilities",
        "classes": json.dumps(trained.class_names),
        "solver": solvers(trained.net),
        "odenet_lightning": __version__,
        "torch": torch.__version__,
    }


def solvers(net: Classifier) -> str:
    """The network's solvers, one where all are the same."""
    return ", ".join(dict.fromkeys(repr(block.solver) for block in net.ode_blocks)) or "no ODE block"


def described(file: Path) -> str:
    """A file's name and size."""
    return f"{file} ({file.stat().st_size / 1024:,.0f} KB)"
