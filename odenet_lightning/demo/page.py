"""The page: its controls, and what happens when one is used. The only file that imports Gradio."""

import base64
import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from odenet_lightning.certificate import accurate_solver
from odenet_lightning.data import Digits
from odenet_lightning.data.image_folder import like_mnist, read_digit
from odenet_lightning.demo import computing, figures, words
from odenet_lightning.demo.computing import TIMES, Parts, Plane
from odenet_lightning.models import Classifier

HERE = Path(__file__).parent
AS_TRAINED = "as trained"
LAST = len(TIMES) - 1
FAILURES = (RuntimeError, ValueError, OSError)  # of a solve, of a picture
QUIET: Any = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
PAD = '<canvas width="280" height="280" aria-label="Drawing pad"></canvas><button type="button">Clear</button>'


@dataclass(frozen=True)
class Subject:
    """A network on the page."""

    net: Classifier
    parts: Parts
    plane: Plane


@dataclass(frozen=True)
class Seen:
    """The digit shown and its states over t, kept so that moving t needs no new solve.

    Attributes:
        pixels: uint8 `[28, 28]`.
        network: name of the network.
        states: at all times, `[T, 1, C, H, W]`.
        curves: the figure of what the head would answer at all times.
        point: in the plane, at all times, `[T, 1, 2]`.
    """

    pixels: Tensor
    network: str
    states: Tensor
    curves: str
    point: Tensor


def drawn_digit(picture: str) -> Tensor:
    """What was drawn on the pad, a PNG as a data URL, in MNIST's form."""
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
        return like_mnist(V.pil_to_tensor(image.convert("L"))[0] / 255)


def titled(title: str, name: str) -> gr.HTML:
    """A titled place for HTML, in a column that moves below its neighbour on small screens."""
    with gr.Column(min_width=300):
        gr.Markdown(f"#### {title}")
        return gr.HTML(elem_id=name)


def only_told(sentence: str) -> list[Any]:
    """Outputs that change the page's sentence only."""
    return [gr.skip(), gr.skip(), gr.skip(), sentence, gr.skip(), gr.skip(), gr.skip()]


class Page:
    """The page for some networks."""

    def __init__(self, networks: Mapping[str, Subject], class_names: tuple[str, ...], digits: Digits) -> None:
        self.networks, self.names, self.digits = networks, class_names, digits

    def solve(self, pixels: Tensor, network: str, name: str, steps: float, exponent: float) -> tuple[Seen, str, str]:
        """The digit's states over t, the table of probabilities, and the verdict."""
        subject = self.networks[network]
        parts = subject.parts
        solver = parts.block.solver if name == AS_TRAINED else computing.solver_of(name, int(steps), exponent)
        accurate = accurate_solver(subject.net)
        own, exact = (computing.answer(parts, pixels, each) for each in (solver, accurate))
        states = computing.states_over_time(parts, pixels[None], solver)
        read = computing.read_at_each_time(parts, states)
        curves = figures.curves(read, self.names, own.steps)
        seen = Seen(pixels, network, states, curves, subject.plane.project(states))
        told = words.verdict(solver, own, accurate, exact, self.names)
        return seen, words.bars(own.probabilities, self.names), told

    def at_time(self, seen: Seen | None, t: float) -> list[Any]:
        """The three figures at a time."""
        if seen is None:
            return ["", "", ""]
        index = min(range(len(TIMES)), key=lambda i: abs(TIMES[i] - t))
        return [
            figures.feature_maps(seen.states, index),
            figures.with_time(seen.curves, index),
            figures.flow(self.networks[seen.network].plane, seen.point, self.names, index),
        ]

    def show(self, pixels: Tensor | None, t: float, *controls: Any) -> list[Any]:
        """Everything on the page for a digit: see `outputs`."""
        if pixels is None:
            return [None, "", "", words.BLANK, *self.at_time(None, t)]
        seen, table, told = self.solve(pixels, *controls)
        return [seen, figures.digit(pixels), table, told, *self.at_time(seen, t)]

    def failing_softly(self, function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """The same function, but with errors shown as a sentence on the page, which otherwise stays as it was."""

        @wraps(function)
        def call(*args: Any) -> list[Any]:
            try:
                return function(*args)
            except FAILURES as error:
                return only_told(words.explained(error))

        return call

    def draw(self, event: gr.EventData, *controls: Any) -> list[Any]:
        """A stroke was drawn."""
        return self.show(drawn_digit(event.picture), *controls)

    def upload(self, path: str, *controls: Any) -> list[Any]:
        """A picture was chosen."""
        return self.show(read_digit(Path(path)), *controls)

    def take(self, *controls: Any) -> list[Any]:
        """A digit of the sample was asked for."""
        return self.show(random.choice(self.digits.images), *controls)

    def take_changed(self, t: float, network: str, *controls: Any) -> list[Any]:
        """A digit was asked for that an accurate solver reads differently."""
        places = self.networks[network].plane.changed.nonzero()[:, 0].tolist()
        if not places:
            return only_told(words.NONE_CHANGED)
        return self.show(self.digits.images[random.choice(places)], t, network, *controls)

    def again(self, seen: Seen | None, *controls: Any) -> list[Any]:
        """Another solver or network was chosen."""
        return self.show(None if seen is None else seen.pixels, *controls)

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        with gr.Blocks(title="Neural ODE", analytics_enabled=False) as blocks:
            seen = gr.State(None)
            gr.Markdown(words.TITLE)
            with gr.Row():
                with gr.Column(min_width=300):
                    pad = gr.HTML(html_template=PAD, js_on_load=(HERE / "pad.js").read_text(), elem_id="pad")
                    take = gr.Button("Take a digit of the sample", elem_id="take")
                    changed = gr.Button("Take one that solvers read differently", elem_id="changed")
                    upload = gr.UploadButton("Upload a picture", file_types=["image"], type="filepath")
                with gr.Column(min_width=300):
                    digit = titled("As the network sees it", "seen")
                    table = titled("Its answer", "answer")
                with gr.Column(min_width=300):
                    controls = self.controls()
                    told = gr.Markdown(words.BLANK, elem_id="told")
            t = gr.Slider(0, 1, value=1, step=TIMES[1], label="Time t", elem_id="time")
            with gr.Row():
                maps = titled("The state y(t), channel by channel", "maps")
                curves = titled("What the head would answer at t", "curves")
                flow = titled("500 digits in a plane, yours the star", "flow")
            outputs = [seen, digit, table, told, maps, curves, flow]
            pad.input(self.failing_softly(self.draw), [t, *controls], outputs, **QUIET)
            upload.upload(self.failing_softly(self.upload), [upload, t, *controls], outputs, **QUIET)
            take.click(self.failing_softly(self.take), [t, *controls], outputs, **QUIET)
            changed.click(self.failing_softly(self.take_changed), [t, *controls], outputs, **QUIET)
            for control in controls:
                control.input(self.failing_softly(self.again), [seen, t, *controls], outputs, **QUIET)
            t.input(self.at_time, [seen, t], [maps, curves, flow], **QUIET)
        return blocks

    def controls(self) -> list[Any]:
        """Network, solver, steps and tolerance; of the last two, what the solver does not use is hidden."""
        names = list(self.networks)
        network = gr.Dropdown(names, value=names[0], label="Network", visible=len(names) > 1, elem_id="network")
        solver = gr.Dropdown([AS_TRAINED, *computing.SOLVERS], value=AS_TRAINED, label="Solver", elem_id="solver")
        steps = gr.Slider(1, 20, value=1, step=1, label="Steps", visible=False, elem_id="steps")
        exponent = gr.Slider(-5, -1, value=-3, step=1, label="Tolerance, 10 to the power of", visible=False)

        def shown(name: str) -> list[Any]:
            fixed = name not in (AS_TRAINED, computing.ADAPTIVE)
            return [gr.update(visible=fixed), gr.update(visible=name == computing.ADAPTIVE)]

        solver.input(shown, solver, [steps, exponent], **QUIET)
        return [network, solver, steps, exponent]

    def launch(self, host: str, port: int | None) -> None:
        """Serve the page until it is interrupted, to this machine alone unless `host` says otherwise."""
        fonts = ["system-ui", "sans-serif"]  # others would be fetched from elsewhere
        theme = Default(font=fonts, font_mono=["monospace"])
        blocks = self.build()
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=theme,
            css=(HERE / "style.css").read_text(),
            footer_links=[],
        )
        print(f"open {blocks.local_url} in a browser; Ctrl-C ends it", flush=True)
        blocks.block_thread()
