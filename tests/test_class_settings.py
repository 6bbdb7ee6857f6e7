"""A class's settings are its own: never those that an earlier source chose for another class."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from odenet_lightning.cli import main
from odenet_lightning.solvers import Dopri5
from tests.helpers import printed

CONFIGS = Path(__file__).parents[1] / "configs"
OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
DOPRI5 = {
    name: parameter.default for name, parameter in inspect.signature(Dopri5).parameters.items() if name != "max_steps"
}


def solver(config: dict[str, Any]) -> dict[str, Any]:
    """The solver's settings of a config."""
    return config["model"]["net"]["init_args"]["solver"]


def write(path: str, tree: dict[str, Any]) -> str:
    """Write a config; returns its name."""
    Path(path).write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_has_its_own_defaults(name: str) -> None:
    given = printed("fit", "--model.optimizer", f"torch.optim.{name}")["model"]["optimizer"]
    assert given["class_path"] == f"torch.optim.{name}"
    defaults = inspect.signature(getattr(torch.optim, name)).parameters
    assert "lr" in given["init_args"]
    for key, parameter in defaults.items():
        if key in given["init_args"] and parameter.default is not inspect.Parameter.empty:
            value = given["init_args"][key]
            value = tuple(value) if isinstance(value, list) else value
            # PyYAML reads 1e-05 as a text
            assert (float(value) if isinstance(value, str) else value) == parameter.default, key


def test_flags_after_a_class_are_its_settings() -> None:
    args = ["--model.optimizer", "SGD", "--model.optimizer.momentum", "0.9"]
    given = printed("fit", *args)["model"]["optimizer"]["init_args"]
    assert (given["lr"], given["momentum"], given["weight_decay"]) == (0.001, 0.9, 0.0)


def test_without_a_class_the_default_class_stays() -> None:
    config = printed("fit", "--model.net.solver.num_steps", "7", "--model.optimizer.lr", "0.02")
    assert solver(config)["class_path"].endswith("Midpoint")
    assert solver(config)["init_args"]["num_steps"] == 7
    assert config["model"]["optimizer"]["init_args"]["adamw_lr"] == 0.02
    assert config["model"]["optimizer"]["init_args"]["weight_decay"] == 1e-4


@pytest.mark.parametrize(
    ("args", "is_coarse"),
    [
        ([], True),
        (["--model.net.solver.num_steps", "7"], True),
        (["--model.optimizer", "SGD"], True),
        (["--model.net.solver", "Midpoint", "--model.net.solver.num_steps", "3"], False),
        (["--model.net", "ResNet"], False),
        (["--config", str(CONFIGS / "paper.yaml")], False),
    ],
)
def test_the_coarse_start_goes_with_the_quick_recipes_network(args: list[str], is_coarse: bool) -> None:
    callbacks = printed("fit", *args)["trainer"]["callbacks"] or []
    assert [callback["class_path"].rpartition(".")[2] for callback in callbacks] == ["CoarseStart"] * is_coarse


def test_the_readmes_accurate_solver() -> None:
    args = ["--model.net.solver", "Dopri5", "--model.net.solver.rtol", "1e-3", "--model.net.solver.atol", "1e-3"]
    assert solver(printed("fit", *args)) == {
        "class_path": "odenet_lightning.solvers.Dopri5",
        "init_args": {**solver(printed("fit", *args[:2]))["init_args"], "rtol": 1e-3, "atol": 1e-3},
    }


@pytest.mark.parametrize(
    "args",
    [
        ["--model.net.solver", "Dopri5"],
        ["--model.net.solver=odenet_lightning.solvers.Dopri5"],
        ["--model.net.solver.class_path", "odenet_lightning.solvers.Dopri5"],
        ["--model.net.init_args.solver", "Dopri5"],
        ["--model.net.solver", '{"class_path": "odenet_lightning.solvers.Dopri5"}'],
        ["--model.net.solver", "dopri5.yaml"],
        ["--config", "net.yaml"],
        ["--config", "bosh3.yaml", "--config", "net.yaml"],
        ["--config", "bosh3.yaml", "--model.net.solver", "Dopri5"],
        ["--model.net.solver", "Dopri5", "--config", "bosh3.yaml"],
        ["--config", "chain.yaml"],
    ],
    ids=" ".join,
)
def test_a_solver_has_its_own_defaults(args: list[str], workdir: Path) -> None:
    other = {"class_path": "odenet_lightning.solvers.Bosh3", "init_args": {"rtol": 0.3, "first_step": "warm"}}
    write("bosh3.yaml", {"model": {"net": {"init_args": {"channels": 4, "solver": other}}}})
    write("net.yaml", {"model": {"net": {"init_args": {"solver": "Dopri5"}}}})
    write("chain.yaml", {"config": "bosh3.yaml", "model": {"net": {"solver": {"class_path": "Dopri5"}}}})
    write("dopri5.yaml", {"class_path": "odenet_lightning.solvers.Dopri5"})
    config = printed("fit", *args)
    assert solver(config)["class_path"] == "odenet_lightning.solvers.Dopri5"
    assert {key: solver(config)["init_args"][key] for key in DOPRI5} == DOPRI5
    assert config["model"]["net"]["init_args"]["channels"] == (4 if "bosh3.yaml" in args or "chain.yaml" in args else 6)


@pytest.mark.parametrize(
    ("option", "one", "other", "key"),
    [
        ("model.net", "ResNet", "PaperODENet", "channels"),
        ("model.net.gradient", "Adjoint", "Checkpoint", "rtol"),
        ("model.net.field", "ConvField", "TimeConvField", "channels"),
        ("data.augment", "Deform", "Shift", "pixels"),
        ("model.optimizer", "odenet_lightning.MuonWithAdamW", "torch.optim.AdamW", "betas"),
        ("trainer.callbacks", "EarlyStopping", "ModelCheckpoint", "monitor"),
    ],
)
def test_a_later_config_of_another_class(option: str, one: str, other: str, key: str, workdir: Path) -> None:
    value: Any = {"channels": 3, "rtol": 0.5, "pixels": 2, "betas": [0.5, 0.5], "monitor": "val/loss"}[key]
    required = {"channels": 6} if option.endswith("field") else {}

    def config(name: str, settings: dict[str, Any]) -> dict[str, Any]:
        spec: Any = {"class_path": name, "init_args": settings}
        tree: Any = [spec] if option == "trainer.callbacks" else spec
        for part in reversed(option.replace("net.", "net.init_args.").split(".")):
            tree = {part: tree}
        return tree

    settings = {key: value} if (option, one) != ("data.augment", "Deform") else {"shift": 2.0}
    first, second = write("one.yaml", config(one, settings)), write("other.yaml", config(other, required))
    alone, after = printed("fit", "--config", second), printed("fit", "--config", first, "--config", second)
    assert alone == after


def test_a_later_config_of_the_same_class_changes_single_values(workdir: Path) -> None:
    write("one.yaml", {"model": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}}})
    write("two.yaml", {"model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.5}}}})
    given = printed("fit", "--config", "one.yaml", "--config", "two.yaml")["model"]["optimizer"]["init_args"]
    assert (given["momentum"], given["lr"], given["weight_decay"]) == (0.9, 0.5, 0.0)


@pytest.mark.parametrize("first", ["--model.optimizer.lr", "--model.optimizer.init_args.lr"])
def test_a_setting_before_its_class_is_refused(first: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", first, "0.3", "--model.optimizer", "torch.optim.SGD"])
    said = capsys.readouterr().err
    assert "--model.optimizer.lr stands before --model.optimizer torch.optim.SGD" in said


def test_a_checkpoints_solver_does_not_set_another(workdir: Path) -> None:
    trained = {"class_path": "odenet_lightning.solvers.Bosh3", "init_args": {"rtol": 0.1, "first_step": "warm"}}
    net = {"class_path": "odenet_lightning.models.ODENet", "init_args": {"channels": 3, "solver": trained}}
    settings = {"net": net, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}}
    checkpoint = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "hyper_parameters": settings}
    checkpoint["datamodule_hyper_parameters"] = {}
    torch.save(checkpoint, "trained.ckpt")
    config = printed("test", "--ckpt_path", "trained.ckpt", "--model.net.solver", "Dopri5")
    assert {key: solver(config)["init_args"][key] for key in DOPRI5} == DOPRI5
    assert config["model"]["net"]["init_args"]["channels"] == 3
    assert config["model"]["optimizer"]["init_args"]["weight_decay"] == 0.0, "nor do the built-in recipe's settings"
    kept = printed("test", "--ckpt_path", "trained.ckpt", "--model.net.solver.rtol", "0.2")
    assert (solver(kept)["init_args"]["first_step"], solver(kept)["init_args"]["rtol"]) == ("warm", 0.2)


@pytest.mark.parametrize(("trained", "is_coarse"), [("Midpoint", True), ("RK4", False)])
def test_a_resumed_run_of_the_quick_recipe_keeps_its_coarse_start(workdir: Path, trained: str, is_coarse: bool) -> None:
    spec = {"class_path": f"odenet_lightning.solvers.{trained}", "init_args": {"num_steps": 3}}
    net = {"class_path": "odenet_lightning.models.ODENet", "init_args": {"solver": spec}}
    optimizer = {"class_path": "odenet_lightning.optimizers.MuonWithAdamW"}
    checkpoint = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "datamodule_hyper_parameters": {}}
    checkpoint["optimizer_states"] = [{}]
    torch.save({**checkpoint, "hyper_parameters": {"net": net, "optimizer": optimizer}}, "trained.ckpt")
    callbacks = printed("fit", "--ckpt_path", "trained.ckpt")["trainer"]["callbacks"] or []
    assert bool(callbacks) == is_coarse


@pytest.mark.parametrize("name", ["blog", "blog_two_channel"])
def test_the_posts_recipe_has_no_weight_decay(name: str) -> None:
    assert printed("fit", "--config", str(CONFIGS / f"{name}.yaml"))["model"]["optimizer"]["init_args"] == {
        "lr": 0.001,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": None,
    }
