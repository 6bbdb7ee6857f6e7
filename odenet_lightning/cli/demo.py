"""`demo`: the page in the browser. Imported only when needed: it loads Gradio."""

import os
from importlib.util import find_spec
from pathlib import Path

import torch

from odenet_lightning.checkpoints import RefusedCheckpoint
from odenet_lightning.cli.app import Parser
from odenet_lightning.cli.errors import PROGRAM, UsageError
from odenet_lightning.data import load_sample
from odenet_lightning.demo.computing import parts_of, plane_of
from odenet_lightning.models import IMAGE_SHAPE
from odenet_lightning.trained import TrainedNetwork, load_trained

ONE_STEP = "one_step"  # trained with a single step: no ODE, as an accurate solver shows
DIGITS = 500  # in the plane


def parser_of_demo() -> Parser:
    """The command's flags."""
    parser = Parser(prog=f"{PROGRAM} demo", description="Draw a digit in the browser and follow it through the ODE.")
    parser.add_argument("--config", action="config", help="a YAML with settings")
    parser.add_argument("--ckpt_path", type=str, default="default", help="a checkpoint, or a packaged network's name")
    parser.add_argument("--trusted", type=str | None, help="your module or package whose classes may be imported")
    parser.add_argument("--root", type=str, default="data", help="folder for the built-in sample")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="the address to serve; 0.0.0.0 for everyone")
    parser.add_argument("--port", type=int | None, help="the port to serve at (the first free one from 7860)")
    return parser


def demo(args: list[str]) -> None:
    """Serve the page until it is interrupted."""
    given = parser_of_demo().parse_args(args)
    if find_spec("gradio") is None:
        raise UsageError("demo needs Gradio: pip install 'gradio>=6,<7'")
    trained = {name: load_trained(name, given.trusted) for name in dict.fromkeys((given.ckpt_path, ONE_STEP))}
    first = trained[given.ckpt_path]
    refuse_other_networks(given.ckpt_path, first)
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    from odenet_lightning.demo.page import Page, Subject

    every = load_sample(Path(given.root))
    digits = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:DIGITS]]
    networks = {}
    for name, each in trained.items():
        parts = parts_of(each.net)
        if parts is not None and len(each.class_names) == len(first.class_names):
            networks[name] = Subject(each.net, parts, plane_of(parts, digits))
    Page(networks, first.class_names, digits).launch(given.host, given.port)


def refuse_other_networks(path: str, trained: TrainedNetwork) -> None:
    """Refuse a network that the page cannot show."""
    kind = type(trained.net).__name__
    if parts_of(trained.net) is None:
        raise RefusedCheckpoint(f"{path} holds a {kind}; the demo shows networks with one ODE block")
    if trained.image_shape != IMAGE_SHAPE:
        shape = " x ".join(map(str, trained.image_shape))
        raise RefusedCheckpoint(f"{path} holds a {kind} for images of {shape}; the demo's are 1 x 28 x 28")
