from pathlib import Path

import pytest

from odenet_lightning.studies import markdown
from odenet_lightning.studies.recipe_tables import duration, recipe_lines
from odenet_lightning.studies.reference import TABLES
from odenet_lightning.studies.rows import Ledger
from odenet_lightning.studies.tables import BLOCK, DRAWN, ROOT, drawn, readmes, with_tables
from tests.helpers import outside


def test_every_table_is_in_some_readme() -> None:
    names = {name for path in readmes() for _, name, _ in BLOCK.findall(path.read_text())}
    assert names == set(TABLES)


@pytest.mark.parametrize("path", readmes(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tables_are_what_the_rows_give(path: Path) -> None:
    text = path.read_text()
    assert with_tables(text) == text, "run: python -m odenet_lightning.studies.tables"


def test_only_marked_blocks_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, "two", lambda: "| new |")
    text = "before 1.00\n<!-- table: two -->\n| old |\n<!-- end -->\nafter\n"
    assert with_tables(text) == text.replace("old", "new")
    assert with_tables(text.replace("| old |\n", "")) == text.replace("old", "new")
    with pytest.raises(ValueError, match="no table 'three'"):
        with_tables(text.replace("two", "three"))


def test_runs_come_before_summaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of known runs mean and standard deviation are computed; a summary gives what no run does."""
    monkeypatch.setattr(markdown, "LOGS", tmp_path)
    folder = tmp_path / "reference-study-recipes"
    folder.mkdir()
    common = {"recipe": "a.yaml", "n": 10_000, "epochs": 2, "parameters": 1_000, "hardware": "H", "threads": 1}
    runs, summaries = Ledger(folder / "rows.csv"), Ledger(folder / "summaries.csv")
    for accuracy in (0.98, 0.99):
        runs.append({**common, "accuracy": accuracy, "retest": None, "seconds": None})
    empty = dict.fromkeys(("accuracy", "accuracy_sd", "retest_sd", "seconds"))
    known = {"runs": 5, "retest": 0.97, "retest_runs": 1, "seconds_low": 300.0, "seconds_high": 360.0}
    summaries.append({**common, **empty, **known})
    summaries.append({**common, **empty, **known, "recipe": "b", "accuracy": 0.5, "accuracy_sd": 0.001, "threads": 2})
    first, second = recipe_lines()
    assert first == ["`a.yaml`", "2", "1,000", "98.50 % ± 0.71", "2", "97.00 % (n = 1)", "5 to 6 min", "H, 1 thread"]
    assert second == ["b", "2", "1,000", "50.00 % ± 0.10", "5", "97.00 % (n = 1)", "5 to 6 min", "H, 2 threads"]


@pytest.mark.parametrize(
    ("seconds", "text"), [([33.3, 28.5, 36.8], "28.5 to 36.8 s"), ([75.0], "75 s"), ([990.0], "16.5 min")]
)
def test_durations(seconds: list[float], text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("name", [*DRAWN, "steps", "loop", "evaluate"])
def test_figures_of_the_reference_rows_say_what_they_show(name: str) -> None:
    """Every panel has a title, the figure a caption, nothing is cut, and logarithmic axes have no ticks in between."""
    figure = drawn(name)
    assert not outside(figure)
    caption = figure.get_supxlabel()
    assert len(caption) > 40
    boxes = [text.get_window_extent() for text in figure.texts]
    for axes in figure.axes:
        assert axes.get_title()
        assert not any(box.overlaps(axes.get_window_extent()) for box in boxes)
        for axis in (axes.xaxis, axes.yaxis):
            assert axis.get_scale() != "log" or not len(axis.get_minorticklocs())
