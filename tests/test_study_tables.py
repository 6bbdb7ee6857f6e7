"""The tables that studies print: within a terminal's width, complete and explained."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odenet_lightning.studies import STUDIES
from odenet_lightning.studies.columns import WIDTH, Column, Row, as_text, duration, percent, plain, size
from odenet_lightning.studies.intervals import half_width, with_interval
from odenet_lightning.studies.markdown import reference
from odenet_lightning.studies.recipes import mean_and_sd
from tests.made_studies import depth_rows, made


def values(column: Column) -> st.SearchStrategy[Any]:
    """What rows may have in a column: with the widest names and numbers that studies measure."""
    if column.is_text:
        words = [
            "Adjoint as in torchdiffeq",
            "one evaluation, PyTorch's operators",
            "ErrorEstimate at 10",
            "a_very_" * 9,
        ]
        return st.sampled_from(words)
    if column.form is percent:
        return st.floats(0, 1)
    if column.head == "runs":
        return st.integers(1, 999)
    if column.form is plain:
        numbers = st.floats(1e-6, 99_999)
        texts = (
            st.sampled_from(["98.36 % ± 0.13", "-9.02 ± 75.38"]) if column.key in ("accuracy", "retest") else st.none()
        )
        return st.one_of(st.none(), numbers, st.integers(0, 99_999), texts)
    return st.one_of(st.none(), st.floats(1e-6, 99_999))  # seconds, milliseconds or bytes


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(list(STUDIES)), st.integers(1, 6))
def test_every_studys_table_fits_a_terminal(data: st.DataObject, name: str, count: int) -> None:
    columns = STUDIES[name].columns
    rows = [{column.key: data.draw(values(column)) for column in columns} for _ in range(count)]
    text = as_text(rows, columns)
    assert max(map(len, text.splitlines())) <= WIDTH, text


@pytest.mark.parametrize("name", list(STUDIES))
def test_the_reference_rows_fit_a_terminal_and_are_answered(name: str) -> None:
    rows = [row for row in reference(name) if row.get("seconds", 0) is not None or name != "recipes"]
    study = made(name, **({"source": "sample"} if name == "digits" else {}))
    lines = as_text(study.table(rows), study.columns).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not re.search(r"\bnan\b|None|inf\b", "\n".join(lines))
    answer = study.answer(rows)
    assert answer.endswith(".")
    assert not re.search(r"nan|None", answer)


def test_a_table_is_aligned_and_explained() -> None:
    columns = (
        Column("name", is_text=True),
        Column("error"),
        Column("bytes", "kept", size, says="the most held"),
        Column("empty"),
    )
    rows: list[Row] = [
        {"name": "a", "error": 0.000123456, "bytes": 10 * 2**20, "empty": None},
        {"name": "longer", "error": None, "bytes": 512, "empty": None},
    ]
    assert as_text(rows, columns).splitlines() == [
        "name       error       kept",
        "a       0.000123   10.0 MiB",
        "longer         -  512 bytes",
        "",
        "kept: the most held",
    ]
    assert as_text([], columns) == "no rows"


def test_what_is_the_same_in_all_rows_makes_room() -> None:
    columns = (Column("name", is_text=True), *(Column(f"number{index}") for index in range(9)))
    rows: list[Row] = [
        {"name": name, **{f"number{index}": 7 if index else place for index in range(9)}}
        for place, name in enumerate(("unbreakable-name", "another-such-name"))
    ]
    text = as_text(rows, columns)
    assert "in all rows: number1 7, number2 7" in text
    assert "unbreakable-name" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (duration(0.0123), "12.3 ms"),
        (duration(4.2e-5), "42 us"),
        (duration(95.0), "95 s"),
        (duration(150.0), "2.5 min"),
        (size(12_345_678), "11.8 MiB"),
        (plain(1234), "1,234"),
        (plain(0.00123), "0.00123"),
        (percent(0.98), "98.00 %"),
    ],
)
def test_sizes_that_people_read(text: str, said: str) -> None:
    assert text == said


def test_two_runs_have_no_interval() -> None:
    assert half_width([1.0, 2.0]) is None
    assert with_interval([1.0, 3.0], unit=" %") == "2.00 %"
    assert "±" in with_interval([1.0, 2.0, 3.0])
    rows: list[Row] = [{"accuracy": value} for value in (0.98, 0.99)]
    assert mean_and_sd(rows, "accuracy") == "98.50 %"
    assert mean_and_sd([*rows, {"accuracy": 0.97}], "accuracy") == "98.00 % ± 1.00"
    lines = made("depth").table(depth_rows([0.1, 0.1]))
    assert not any("±" in str(line["accuracy"]) for line in lines)
