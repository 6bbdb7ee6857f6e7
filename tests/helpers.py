"""Helpers of several test files."""

import contextlib
import io
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text

from odenet_lightning.cli import main

LOUD = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "2"]
QUICK = [*LOUD, "--pictures.every_n_epochs", "0"]
SAMPLE = ["--data.source", "sample"]
FEW = [*LOUD, "--data.batch_size", "64", "--trainer.limit_train_batches", "60", "--trainer.log_every_n_steps", "10"]


def outside(figure: Figure) -> list[str]:
    """The texts that are cut by the figure's edge."""
    figure.canvas.draw()
    edge = figure.bbox.padded(1)
    off = [axes for axes in figure.axes if not axes.axison]
    hidden = {label for axes in off for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in hidden]
    boxes = {text.get_text(): text.get_window_extent() for text in shown if isinstance(text, Text)}
    return [text for text, box in boxes.items() if not (edge.contains(*box.min) and edge.contains(*box.max))]


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a call that must fail; returns its one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert len(errors[0]) < 400
    return errors[0]


def printed(*args: str) -> dict[str, Any]:
    """The settings that a command line leads to."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main([*args, "--print_config"])
    assert ended.value.code in (0, None)
    return yaml.safe_load(out.getvalue())
