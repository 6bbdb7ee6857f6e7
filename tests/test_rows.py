import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odenet_lightning.studies.columns import Row
from odenet_lightning.studies.rows import Ledger, from_cell, to_cell

ROW: Row = {"case": "a", "rtol": 1e-5, "value": 3, "config": "{}"}


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.sampled_from(["", "1", "12345e7", "1.10", "true", "null", '"quoted"', "NaN", "{}"]),
    )
)
def test_a_value_is_read_back_as_it_was(value: str | int | float | bool | None) -> None:
    back = from_cell(to_cell(value))
    assert back == value
    assert type(back) is type(value)


def test_a_value_that_is_no_number_is_read_back() -> None:
    back = from_cell(to_cell(math.nan))
    assert isinstance(back, float)
    assert math.isnan(back)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])), st.floats(allow_nan=False)),
        min_size=1,
        max_size=5,
    )
)
def test_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, float]]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "rows.csv"
    ledger = Ledger(path)
    for text, number in values:
        ledger.append({"text": text, "number": number})
    assert Ledger(path).rows == ledger.rows == [{"text": text, "number": number} for text, number in values]


def test_each_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rows.csv")
    for count in (1, 2, 3):
        ledger.append({**ROW, "value": count})
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + count


@pytest.mark.parametrize("kept", range(0, 60, 3))
def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "rows.csv"
    ledger = Ledger(path)
    ledger.append(ROW)
    ledger.append({**ROW, "case": "b"})
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    again = Ledger(path)
    assert again.rows == ledger.rows[: max(0, whole[:kept].count(b"\n") - 1)]
    for row in ledger.rows[len(again.rows) :]:
        again.append(row)
    assert path.read_bytes() == whole


def test_rows_are_found_by_case_and_settings(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rows.csv")
    ledger.append(ROW)
    ledger.append({**ROW, "rtol": None, "value": 4})
    ledger.append({**ROW, "config": "other", "value": 5})
    cases: list[Row] = [{"case": "a", "rtol": None}, {"case": "a", "rtol": 1e-5}, {"case": "b", "rtol": 1e-5}]
    first, second, third = ledger.find(cases, "{}")
    assert first is not None
    assert second is not None
    assert (first["value"], second["value"], third) == (4, 3, None)
    assert ledger.find(cases[1:2], "other") == [{**ROW, "config": "other", "value": 5}]


@pytest.mark.parametrize("text", [b"a,b\n1,2\n1\n", b'a,b\n1,"2\n', b"\xff\xfe\n\xff\n"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(text)
    with pytest.raises(ValueError, match="move it away"):
        Ledger(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == text


def test_a_foreign_file_is_left_as_it_was(tmp_path: Path) -> None:
    for text in ("my notes", "a,b\n", "a,b\n1,2\n3"):
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(ValueError, match="other columns"):
            Ledger(tmp_path / "rows.csv").append(ROW)
        assert (tmp_path / "rows.csv").read_text() == text


def test_rows_with_other_columns_are_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rows.csv")
    ledger.append(ROW)
    with pytest.raises(ValueError, match="other columns"):
        ledger.append({"case": "a"})
    assert Ledger(tmp_path / "rows.csv").rows == [ROW]
