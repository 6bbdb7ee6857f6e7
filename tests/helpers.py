"""Helpers of several test files."""

import contextlib
import io
from typing import Any

import pytest
import yaml

from odenet_lightning.cli import main

LOUD = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "2"]
QUICK = [*LOUD, "--pictures.every_n_epochs", "0"]
SAMPLE = ["--data.source", "sample"]
FEW = [*LOUD, "--data.batch_size", "64", "--trainer.limit_train_batches", "60", "--trainer.log_every_n_steps", "10"]


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
