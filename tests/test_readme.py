"""Every command of the README is parsed; the quick ones are run."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from odenet_lightning.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """The calls of the command line in the README's code blocks, `...` and placeholders left out."""
    blocks = re.findall(r"```(?:bash|console|sh)\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split("python -m odenet_lightning ", 1)[1] for line in lines if "python -m odenet_lightning " in line]
    return [shlex.split(call.split("&&")[0]) for call in calls]


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("args", commands(), ids=" ".join)
def test_command_is_understood(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read to its end by the command line, which then stops before it does anything."""
    monkeypatch.chdir(ROOT)
    if "--ckpt_path" in args:  # a run of the reader's own
        index = args.index("--ckpt_path") + 1
        args = [*args[:index], "last", *args[index + 1 :]]
    with pytest.raises(SystemExit) as ended:
        main([*args, "--print_config"])
    assert ended.value.code in (0, None), args


def test_every_config_is_explained() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert path.name in README, f"{path.name} is not in the README"


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_own_field_of_the_readme_works() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class " in block)
    names: dict[str, Any] = {}
    exec(code, names)
    field = names["TimedField"](channels=6)
    y = torch.rand(2, 6, 26, 26)
    early, late = (field(torch.tensor(t), y) for t in (0.0, 1.0))
    assert early.shape == y.shape
    assert not torch.equal(early, late)


@pytest.mark.parametrize("told_by", ["MNISTDataModule(", "FakeData("])
def test_python_of_the_readme_runs(told_by: str, workdir: Path, sample_root: Path) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if told_by in block)
    code = code.replace("Trainer(", 'Trainer(accelerator="cpu", limit_train_batches=2, limit_val_batches=1, ')
    code = code.replace("Trainer(", "Trainer(log_every_n_steps=1, logger=False, enable_checkpointing=False, ")
    code = code.replace("MNISTDataModule(", f"MNISTDataModule(root={str(sample_root)!r}, ")
    exec(code, {})
