"""The README's promises of the built-in recipe, at its full length."""

import re
from pathlib import Path

import pytest

from odenet_lightning.cli import main

CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]


def accuracy(text: str, label: str) -> float:
    """The percentage behind a label."""
    found = re.search(rf"{label}\s+([\d.]+)%", text)
    assert found, text
    return float(found.group(1))


@pytest.mark.slow
def test_built_in_recipe_on_the_sample(workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *CPU])
    assert accuracy(capsys.readouterr().out, "best val/acc") >= 96.5


@pytest.mark.mnist
def test_built_in_recipe_on_mnist(workdir: Path, mnist_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--data.root", str(mnist_root), "--data.source", "mnist"]
    main(["fit", *root, *CPU])
    main(["test", *root, *CPU, "--ckpt_path", "lightning_logs/version_0/checkpoints/best.ckpt"])
    assert accuracy(capsys.readouterr().out, "test images of mnist:") >= 98.3
