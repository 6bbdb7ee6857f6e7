"""What the demo's page shows: answers, states over t, the plane, the sentences; and the command without Gradio."""

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import UnidentifiedImageError
from torch import nn

from odenet_lightning import ODEBlock
from odenet_lightning.certificate import accurate_solver
from odenet_lightning.cli import demo as command
from odenet_lightning.data import Digits, load_sample, normalise
from odenet_lightning.demo import figures, words
from odenet_lightning.demo.computing import (
    EVERY_TIME,
    SOLVERS,
    TIMES,
    Answer,
    Parts,
    answer,
    parts_of,
    plane_of,
    read_at_each_time,
    solver_of,
    states_over_time,
)
from odenet_lightning.fields import ConvField
from odenet_lightning.gradients import Backprop
from odenet_lightning.models import Composed, PyramidODENet
from odenet_lightning.solvers import Dopri5, Euler, Midpoint, SolverError, TorchDiffEq
from odenet_lightning.trained import load_trained
from tests.helpers import fails

NAMES = tuple("0123456789")


@pytest.fixture
def digits(sample_root: Path) -> Digits:
    """Three of each."""
    every = load_sample(sample_root)
    return every[torch.cat([(every.labels == label).nonzero()[:3, 0] for label in range(10)])]


def parts(name: str) -> Parts:
    found = parts_of(load_trained(name).net)
    assert found is not None
    return found


def test_answer_is_the_networks(digits: Digits) -> None:
    net = load_trained("default").net
    found = answer(parts("default"), digits.images[7], Midpoint(num_steps=3))
    with torch.no_grad():
        expected = net(normalise(digits.images[7:8])).softmax(1)[0]
    torch.testing.assert_close(found.probabilities, expected)
    assert found.evaluations == 6
    assert found.steps == pytest.approx((0, 1 / 3, 2 / 3))
    adaptive = answer(parts("default"), digits.images[7], Dopri5(1e-4, 1e-4))
    assert len(adaptive.steps) > 3
    assert adaptive.evaluations >= 6 * len(adaptive.steps)
    assert answer(parts("default"), digits.images[7], TorchDiffEq("dopri5", 1e-4, 1e-4)).steps == ()


def test_an_accurate_solver_breaks_the_network_of_one_step(digits: Digits) -> None:
    """And not the default one: this is what the page is to show."""
    changed = {}
    for name in ("default", "one_step"):
        net = load_trained(name).net
        whole, accurate = parts(name), accurate_solver(net)
        read = [
            [int(answer(whole, image, solver).probabilities.argmax()) for solver in (whole.block.solver, accurate)]
            for image in digits.images
        ]
        changed[name] = sum(own != exact for own, exact in read)
    assert changed["default"] <= 1
    assert changed["one_step"] >= 3


@pytest.mark.parametrize("name", SOLVERS)
def test_states_begin_at_the_stem_and_end_at_the_answer(name: str, digits: Digits) -> None:
    whole, solver = parts("default"), solver_of(name, 2, -2)
    states = states_over_time(whole, digits.images[:1], solver)
    with torch.no_grad():
        torch.testing.assert_close(states[0], whole.stem(normalise(digits.images[:1])))
    read = read_at_each_time(whole, states)
    assert read.shape == (len(TIMES), 10)
    torch.testing.assert_close(read.sum(1), torch.ones(len(TIMES)))
    expected = answer(whole, digits.images[0], solver)
    torch.testing.assert_close(read[-1], expected.probabilities, rtol=1e-4, atol=1e-5)


def test_plane_holds_what_is_solved_closely(digits: Digits) -> None:
    whole = parts("default")
    plane = plane_of(whole, digits)
    assert plane.points.shape == (len(TIMES), 30, 2)
    states = states_over_time(whole, digits.images[:2], EVERY_TIME)
    torch.testing.assert_close(plane.project(states), plane.points[:, :2], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plane.axes.T @ plane.axes, torch.eye(2), rtol=0, atol=1e-4)
    assert plane.changed.sum() <= 1
    assert plane_of(parts("one_step"), digits).changed.sum() >= 3
    spread = plane.points[-1].var(0)
    assert spread[0] > spread[1]
    other = torch.linalg.qr(torch.randn(len(plane.axes), 1, generator=torch.Generator().manual_seed(0))).Q
    assert spread[1] > ((states.flatten(2) - plane.centre) @ other)[-1].var()


def test_any_network_with_one_block_has_parts() -> None:
    block = ODEBlock(ConvField(2), Euler(num_steps=1), Backprop())
    net = Composed(nn.Conv2d(1, 2, 3), nn.Flatten(), block)
    found = parts_of(net)
    assert found is not None
    assert found.block is block
    assert parts_of(Composed(nn.Conv2d(1, 2, 3), nn.Flatten())) is None
    assert parts_of(PyramidODENet()) is None


def test_figures_tell_what_they_show(digits: Digits) -> None:
    whole = parts("default")
    plane = plane_of(whole, digits)
    states = states_over_time(whole, digits.images[:1], whole.block.solver)
    read = read_at_each_time(whole, states)
    shown = {
        t: [
            figures.feature_maps(states, t),
            figures.with_time(figures.curves(read, NAMES, (0.0, 0.5)), t),
            figures.flow(plane, plane.project(states), NAMES, t),
        ]
        for t in (0, 20)
    }
    for early, late in zip(*shown.values(), strict=True):
        assert early != late
        assert re.search(r'alt="[^"]{20,}" src="data:image/png;base64,\w', late)
    assert "left:13.0%" in shown[0][1]
    assert "left:97.0%" in shown[20][1]
    assert "at t = 1 0" in shown[20][1]  # the first digit is a nought


def test_sentences() -> None:
    three, eight = (torch.nn.functional.one_hot(torch.tensor(k), 10) * 0.9 for k in (3, 8))
    own, exact = Answer(three, 1, (0.0,)), Answer(eight, 44, (0.0, 0.5))
    told = words.verdict(Euler(num_steps=1), own, Dopri5(), exact, NAMES)
    assert "takes 1 step and evaluates f once" in told
    assert "**3** (90.0%)" in told
    assert "**They disagree**" in told
    assert "`Euler` evaluates f once" in words.verdict(Euler(num_steps=1), Answer(three, 1, ()), Dopri5(), own, NAMES)
    assert "**They agree**" in words.verdict(Euler(num_steps=1), own, Dopri5(), own, NAMES)
    assert words.explained(SolverError("too\nstiff")) == "**The equation could not be solved**: too stiff."
    assert words.explained(UnidentifiedImageError("x")).endswith("PPM, TIFF, WEBP.")
    assert words.explained(ValueError("nothing to see")) == "**This picture cannot be used**: nothing to see."
    table = words.bars(three, ("<b>", *NAMES[1:]))
    assert "&lt;b&gt;" in table
    assert table.count("<tr") == 10
    assert 'class=first><td>3</td><td><b style="width:90.0%">' in table


@pytest.fixture
def page_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page's file without Gradio, which lays it out but computes nothing."""
    for name in ("gradio", "gradio.themes"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    name = "odenet_lightning.demo.page"
    sys.modules.pop(name, None)
    yield importlib.import_module(name)
    del sys.modules[name]


def test_a_digit_that_changes_is_shown_or_there_is_none(page_module: Any, digits: Digits) -> None:
    networks = {}
    for name in ("default", "one_step"):
        whole, plane = parts(name), plane_of(parts(name), digits)
        changed = plane.changed if name == "one_step" else torch.zeros_like(plane.changed)
        networks[name] = page_module.Subject(load_trained(name).net, whole, replace(plane, changed=changed))
    page = page_module.Page(networks, NAMES, digits)
    assert words.NONE_CHANGED in page.take_changed(1.0, "default", "as trained", 1, -3)
    seen, *_ = page.take_changed(1.0, "one_step", "as trained", 1, -3)
    places = networks["one_step"].plane.changed.nonzero().flatten()
    assert any(torch.equal(seen.pixels, digits.images[place]) for place in places)


def test_command_refuses(workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    monkeypatch.setattr(command, "load_trained", lambda *_: FakeTrained())
    assert "the demo shows networks with one ODE block" in fails(["demo"], capsys)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "demo needs Gradio: pip install 'gradio>=6,<7'" in fails(["demo"], capsys)


class FakeTrained:
    net = PyramidODENet()
    image_shape = (1, 28, 28)
    class_names = NAMES
