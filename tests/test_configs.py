"""Every YAML in configs/ runs a batch, and changes something."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from odenet_lightning.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {path.name for path in CONFIGS} >= {"blog.yaml", "blog_two_channel.yaml"}


PARAMETERS = {
    "augmented": 84_816,
    "blog": 10_564,
    "blog_two_channel": 3_456,
    "cluster": 10_564,
    "fast": 10_564,
    "paper": 208_266,
    "paper_none": 132_874,
    "paper_resnet1": 206_858,
    "paper_resnet6": 576_778,
    "record": 10_074,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_a_batch(
    path: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--pictures.every_n_epochs", "0"]
    main(["fit", "--config", str(path), "--data.root", str(sample_root), "--data.source", "sample", *quick, *cpu])
    output = capsys.readouterr().out
    assert "best checkpoint" in output
    assert f", {PARAMETERS[path.stem]:,} parameters" in output
    assert yaml.safe_load(path.read_text())


def class_paths(tree: Any) -> set[str]:
    """All class paths in a config, at any depth."""
    if not isinstance(tree, dict):
        return set()
    return {tree[key] for key in tree if key == "class_path"}.union(*map(class_paths, tree.values()))


def test_what_configs_name_is_known_to_a_fresh_process() -> None:
    """So that `test` and `predict` take their checkpoints without the config."""
    configs = [yaml.safe_load(path.read_text()) for path in CONFIGS]
    paths = sorted(set().union(*(class_paths(config.get(part)) for config in configs for part in ("model", "data"))))
    assert "torch.optim.AdamW" in paths
    ask = "import sys; from odenet_lightning.cli.trust import is_known_class as known; print(*map(known, sys.argv[1:]))"
    answer = subprocess.run([sys.executable, "-c", ask, *paths], capture_output=True, text=True, check=True).stdout
    assert dict(zip(paths, answer.split(), strict=True)) == dict.fromkeys(paths, "True")


def test_blog_is_the_posts_recipe(workdir: Path, sample_root: Path) -> None:
    path = next(path for path in CONFIGS if path.stem == "blog")
    quick = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--data.source", "sample"]
    config = yaml.safe_load(path.read_text())
    net = config["model"]["net"]
    assert net["init_args"]["solver"]["init_args"] == {"method": "dopri5", "rtol": 0.1, "atol": 0.1}
    assert net["init_args"]["gradient"]["class_path"].endswith("Adjoint")
    assert config["model"]["optimizer"] == {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.001, "momentum": 0.9},
    }
    assert config["model"]["schedule"] == "constant"
    assert config["data"] == {"batch_size": 16, "val_size": 1_000, "augment": False}
    assert config["trainer"] == {"max_epochs": 10}
    main(["fit", "--config", str(path), "--data.root", str(sample_root), *quick])
