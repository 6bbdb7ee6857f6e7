"""Imports go one way, and nothing is too long to be read at once.

They go down the list of rooms, and never from the numerics or the data to the trainer's framework.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "odenet_lightning"
# each may import those before it
ROOMS = (
    ("kernels",),
    ("solvers",),
    ("gradients",),
    ("block", "fields"),
    ("regularizers",),
    ("models",),
    ("certificate", "refinement"),
    ("augment", "optimizers", "figures", "schedules", "skipping", "divergence", "recording", "phase_clock"),
    ("data",),
    ("trainer", "compiling", "unsupported", "graphs"),
    ("class_names",),
    ("checkpoints",),
    ("evaluated",),
    ("module",),
    ("trained",),
    ("callbacks",),
    ("exporting",),
    ("studies",),
    ("demo",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
NUMERICS = ("kernels", "solvers", "gradients", "block", "fields", "regularizers", "models", "certificate", "refinement")
FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.stem.startswith("__")]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module, "imports name their module in full"
            assert node.level == 0, "imports name their module in full"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_every_room_is_looked_into() -> None:
    assert {room_of(path) for path in FILES} == set(RANK)
    assert {"lightning", "odenet_lightning.data"} <= set(imported(PACKAGE / "callbacks" / "is_ode.py")) | set(
        imported(PACKAGE / "cli" / "app.py")
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_those_below(path: Path) -> None:
    room = room_of(path)
    for module in imported(path):
        top, _, rest = module.partition(".")
        if top == PACKAGE.name and rest:
            other = rest.split(".")[0]
            assert other == room or RANK[other] < RANK[room] or RANK[other] == RANK[room] <= 7, f"{room} <- {other}"
        assert room not in NUMERICS or top not in ("lightning", "torchmetrics"), "numerics know no trainer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_classes_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    most = {ast.ClassDef: 150, ast.FunctionDef: 50}
    long = [
        f"{node.name}, {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > most[type(node)]
    ]
    assert not long
    assert path.stem == "methods" or len(text.splitlines()) <= 250  # of tableaux


TESTS = sorted(Path(__file__).parent.glob("*.py"))


def test_test_files_are_short() -> None:
    assert len(TESTS) > 50
    assert not [path.name for path in TESTS if len(path.read_text().splitlines()) > 250]


def test_no_test_file_imports_another() -> None:
    """What several of them need is in modules without tests."""
    assert not [path.name for path in TESTS if any(name.startswith("tests.test_") for name in imported(path))]
