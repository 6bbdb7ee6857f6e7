"""Every README: its commands are parsed, the quick ones and the Python run, its links lead somewhere."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from odenet_lightning.cli import main
from odenet_lightning.studies import STUDIES
from odenet_lightning.studies.tables import readmes

ROOT = Path(__file__).parents[1]
PROGRAM = "python -m odenet_lightning "
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in readmes()}


def blocks(language: str) -> list[tuple[str, str]]:
    """Code blocks of all READMEs, each with its file."""
    pattern = rf"```(?:{language})\n(.*?)```"
    return [(name, code) for name, text in TEXTS.items() for code in re.findall(pattern, text, re.DOTALL)]


def commands() -> list[list[str]]:
    """The calls of the command line in code blocks, without comments."""
    lines = [line.split("#")[0] for _, block in blocks("bash|sh") for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split(PROGRAM, 1)[1] for line in lines if PROGRAM in line]
    return list(map(list, dict.fromkeys(tuple(shlex.split(call.split("&&")[0])) for call in calls)))


def python(told_by: str) -> str:
    """The one block of Python with a text in it."""
    (code,) = [code for _, code in blocks("python") if told_by in code]
    return code


def test_readmes_are_found() -> None:
    expected = {"README.md", "lightning_logs/README.md", "odenet_lightning/README.md"}
    assert expected | {"odenet_lightning/studies/README.md", "configs/README.md"} <= set(TEXTS)
    assert len(commands()) >= 12


def test_the_front_page_fits_two_screens() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 120


@pytest.mark.parametrize("args", commands(), ids=" ".join)
def test_command_is_understood(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read to its end by the command line, which then stops before it does anything."""
    monkeypatch.chdir(ROOT)
    args = list(args)
    for flag, other in (("--ckpt_path", "last"), ("--weights", "default")):  # of a run of the reader's own
        if flag in args:
            args[args.index(flag) + 1] = other
    with pytest.raises(SystemExit) as ended:
        main([*args, "--print_config"])
    assert ended.value.code in (0, None), args


@pytest.mark.slow
@pytest.mark.parametrize("args", [args for args in commands() if "--quick" in args], ids=" ".join)
def test_quick_command_runs(
    args: list[str], workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*args, "--root", str(sample_root)])
    assert f"lightning_logs/study-{args[1]}-quick" in capsys.readouterr().out


def test_every_config_and_study_is_explained() -> None:
    for name in [*(path.name for path in (ROOT / "configs").glob("*.yaml")), *(f"study {name}" for name in STUDIES)]:
        assert any(name in text for text in TEXTS.values()), f"no README mentions {name}"


def links(name: str) -> list[tuple[str, str]]:
    """A README's links within the project: targets and anchors."""
    return re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", TEXTS[name])


def cells_of_paths(name: str) -> list[str]:
    """The cells with paths in the first column of a README's tables."""
    return re.findall(r"^\| (`[^|]*/[^|]*`) \|", TEXTS[name], re.MULTILINE)


def test_links_and_paths_are_found() -> None:
    """The two tests below have something to look at."""
    assert {"LICENSE", "configs/README.md", "lightning_logs/README.md"} <= {target for target, _ in links("README.md")}
    assert sum(bool(anchor) for name in TEXTS for _, anchor in links(name)) >= 1
    assert sum(len(links(name)) for name in TEXTS) >= 20
    assert len(cells_of_paths("README.md")) >= 8


@pytest.mark.parametrize("name", list(TEXTS))
def test_links_and_pictures_exist(name: str) -> None:
    folder = (ROOT / name).parent
    for target, anchor in links(name):
        path = folder / target if target else ROOT / name
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor


@pytest.mark.parametrize("name", list(TEXTS))
def test_folders_in_the_map_exist(name: str) -> None:
    """Paths in a table's first column, where they start at the top of the project."""
    for cell in cells_of_paths(name):
        paths = re.findall(r"`([^`]+)`", cell)
        room = ROOT / Path(paths[0]).parts[0]
        for path in paths:
            assert any((base / path).exists() for base in (ROOT, room)), path


def test_own_field_works(workdir: Path) -> None:
    names: dict[str, Any] = {}
    exec(python("class TimedField"), names)
    field = names["TimedField"](channels=6)
    y = torch.rand(2, 6, 26, 26)
    early, late = (field(torch.tensor(t), y) for t in (0.0, 1.0))
    assert early.shape == y.shape
    assert not torch.equal(early, late)


def test_yaml_names_the_own_field(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine,) = [code for name, code in blocks("yaml") if "mine.TimedField" in code]
    assert yaml.safe_load(mine)["model"]["net"]["init_args"]["field"]["class_path"] == "mine.TimedField"
    Path("mine.py").write_text(python("class TimedField"))
    Path("mine.yaml").write_text(mine)
    monkeypatch.syspath_prepend(str(workdir))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "mine.yaml", "--print_config"])
    assert ended.value.code in (0, None)


@pytest.mark.parametrize("text", [code for _, code in blocks("yaml") if "mine." not in code and "config:" not in code])
def test_yaml_is_understood(text: str, workdir: Path) -> None:
    Path("config.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "config.yaml", "--print_config"])
    assert ended.value.code in (0, None)


@pytest.mark.parametrize("told_by", ["MNISTDataModule(", "FakeData("])
def test_own_loop_runs(told_by: str, workdir: Path, sample_root: Path) -> None:
    code = python(told_by)
    code = code.replace("Trainer(", 'Trainer(accelerator="cpu", limit_train_batches=2, limit_val_batches=1, ')
    code = code.replace("Trainer(", "Trainer(log_every_n_steps=1, logger=False, enable_checkpointing=False, ")
    code = code.replace("MNISTDataModule(", f"MNISTDataModule(root={str(sample_root)!r}, ")
    exec(code, {})


def test_field_is_swapped(workdir: Path) -> None:
    names: dict[str, Any] = {}
    exec(python("field = TimeConvField("), names)
    assert names["net"].block.field is names["field"]
    assert names["net"](torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_trained_network_is_loaded(workdir: Path, sample_root: Path) -> None:
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    few += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--pictures.every_n_epochs", "0"]
    main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *few])
    names: dict[str, Any] = {}
    exec(python("load_from_checkpoint("), names)
    assert names["module"](torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_network_for_ones_own_pictures_works(workdir: Path) -> None:
    names: dict[str, Any] = {}
    exec(python("FolderDataModule"), names)
    assert names["module"](torch.zeros(2, 3, 40, 32)).shape == (2, 26)
