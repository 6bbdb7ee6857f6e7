"""Every YAML in configs/ runs a batch, and says what it is meant to; the README's jobs are understood."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from odenet_lightning.cli import main
from odenet_lightning.cli.argv import bare_data
from odenet_lightning.cli.configs import defaults, read_config

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
README = (FOLDER / "README.md").read_text()


def test_there_are_configs() -> None:
    assert {path.name for path in CONFIGS} >= {"blog.yaml", "blog_two_channel.yaml"}


PARAMETERS = {
    "augmented": 84_816,
    "blog": 10_564,
    "blog_two_channel": 3_456,
    "cifar10": 208_266,
    "cluster": 10_564,
    "digits8x8": 10_564,
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
    cpu += ["--is_ode.images", "8"]
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
    configs = [read_config(str(path)) for path in CONFIGS]
    paths = sorted(set().union(*(class_paths(config.get(part)) for config in configs for part in ("model", "data"))))
    assert "torch.optim.AdamW" in paths
    ask = "import sys; from odenet_lightning.checkpoints.trust import is_known_class as known; "
    ask += "print(*map(known, sys.argv[1:]))"
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


def adamw(lr: float) -> dict[str, Any]:
    """The optimiser of the long recipes."""
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.01}}


def midpoint(num_steps: int) -> dict[str, Any]:
    """A fixed-step solver."""
    return {"class_path": "odenet_lightning.solvers.Midpoint", "init_args": {"num_steps": num_steps}}


DEFORMED = {
    "batch_size": 128,
    "val_size": 1_000,
    "augment": {"class_path": "odenet_lightning.augment.Deform", "init_args": {"elastic": 0.7}},
}


def long_recipe(net: str, settings: dict[str, Any], lr: float, **trainer: Any) -> dict[str, Any]:
    """A recipe on deformed digits, as its measured runs were made."""
    net_config = {"class_path": f"odenet_lightning.models.{net}", "init_args": settings}
    model = {"net": net_config, "optimizer": adamw(lr), "schedule": "one_cycle"}
    return {"model": model, "data": DEFORMED, "trainer": trainer}


COARSE = {
    "class_path": "odenet_lightning.callbacks.CoarseStart",
    "init_args": {"epochs": 56, "solver": midpoint(1)},
}
LONG = {
    "paper": long_recipe("PaperODENet", {"channels": 64, "solver": midpoint(3)}, 0.004, max_epochs=20),
    "paper_none": long_recipe("PaperResNet", {"channels": 64, "blocks": 0}, 0.004, max_epochs=20),
    "paper_resnet1": long_recipe("PaperResNet", {"channels": 64, "blocks": 1}, 0.004, max_epochs=20),
    "paper_resnet6": long_recipe("PaperResNet", {"channels": 64, "blocks": 6}, 0.004, max_epochs=20),
    "augmented": long_recipe(
        "AugmentedODENet", {"augment_dim": 5, "hidden": 64, "solver": midpoint(1)}, 0.004, max_epochs=6
    ),
    "record": long_recipe(
        "PyramidODENet",
        {"hidden": 12, "channels": [16, 24], "solver": midpoint(3)},
        0.02,
        max_epochs=72,
        callbacks=[COARSE],
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_shared_parts_make_the_recipes_that_were_measured(name: str) -> None:
    assert bare_data(read_config(str(FOLDER / f"{name}.yaml"))) == LONG[name]


def test_the_residual_networks_differ_in_one_line() -> None:
    one, six = ((FOLDER / f"paper_resnet{n}.yaml").read_text().splitlines() for n in (1, 6))
    assert [pair for pair in zip(one, six, strict=True) if pair[0] != pair[1]] == [
        ("      blocks: 1", "      blocks: 6")
    ]


def test_the_two_channel_recipe_is_the_posts() -> None:
    blog, two = (read_config(str(FOLDER / f"{name}.yaml")) for name in ("blog", "blog_two_channel"))
    assert two["model"]["net"]["init_args"].pop("channels") == 2
    assert blog["model"]["net"]["init_args"].pop("channels") == 6
    assert two == blog


def jobs() -> list[list[str]]:
    """The flags with which the README here submits the SLURM script; `test_readme.py` has its other commands."""
    found = re.findall(r"^sbatch .*configs/slurm\.sbatch (.*?)(?:#|$)", README, re.MULTILINE)
    return [shlex.split(flags) for flags in dict.fromkeys(found)]


@pytest.mark.parametrize("flags", jobs(), ids=" ".join)
def test_a_job_of_the_readme_is_understood(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    with pytest.raises(SystemExit) as ended:
        main(["fit", *flags, "--print_config"])
    assert ended.value.code in (0, None), flags


def test_the_readme_names_every_recipe() -> None:
    assert jobs()
    for path in CONFIGS:
        assert f"`{path.name}`" in README


def test_fast_differs_from_the_built_in_recipe_in_its_solvers_alone() -> None:
    fast, own = (bare_data(config) for config in (read_config(str(FOLDER / "fast.yaml")), defaults()))
    assert fast["model"]["optimizer"] == own["model"]["optimizer"]
    assert fast["data"] == own["data"] | {"augment": True}
    solvers = [config["model"]["net"]["init_args"]["solver"] for config in (fast, own)]
    assert solvers == [midpoint(3), midpoint(5)]
    coarse = [config["trainer"]["callbacks"][0]["init_args"] for config in (fast, own)]
    assert coarse == [{"epochs": 2, "solver": midpoint(1)}, {"share": 0.6, "solver": midpoint(1)}]
