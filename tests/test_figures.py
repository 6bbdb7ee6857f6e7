import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from odenet_lightning.figures import (
    contact_sheet,
    draw_confusion,
    draw_digits,
    draw_feature_maps,
    release,
    shorten,
    tile,
)


def ink(figure: Figure) -> int:
    """Number of pixels that are not white."""
    figure.canvas.draw()
    pixels = torch.tensor(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)  # type: ignore[attr-defined]
    return int((pixels.view(-1, 4)[:, :3] < 250).any(1).sum())


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_shows_every_count() -> None:
    counts = torch.diag(torch.full((10,), 40))
    counts[3, 5] = 7
    figure = draw_confusion(counts)
    assert sorted(texts(figure)) == sorted(["40"] * 10 + ["7"])
    assert figure.axes[0].get_title() == "400 of 407 right"
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("predicted", "true")
    assert ink(figure) > 1_000


def test_tiles_lie_where_they_belong() -> None:
    images = torch.arange(5.0)[:, None, None].expand(-1, 2, 3)
    nan = float("nan")
    sheet = tile(images, columns=3, gap=1, fill=nan)
    assert sheet.shape == (5, 11)
    assert sheet[0].nan_to_num(-1).tolist() == [0, 0, 0, -1, 1, 1, 1, -1, 2, 2, 2]
    assert sheet[4].nan_to_num(-1).tolist() == [3, 3, 3, -1, 4, 4, 4, -1, -1, -1, -1]
    assert sheet[2].isnan().all()


def test_digits_have_their_texts_above_them() -> None:
    figure = draw_digits(torch.rand(9, 28, 28), [f"title {i}" for i in range(9)], "nine", columns=4)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [f"title {i}" for i in range(9)]
    columns = [round(text.get_position()[0]) for text in axes.texts]
    rows = [round(text.get_position()[1], 1) for text in axes.texts]
    assert columns[:4] == columns[4:8] == sorted(set(columns))
    assert len(set(rows)) == 3
    assert axes.get_title() == "nine"


def test_pictures_in_colour() -> None:
    """Side by side, from [-1, 1] to matplotlib's [0, 1], on white."""
    images = torch.stack([torch.full((3, 5, 4), -1.0), torch.tensor([1.0, -1.0, 0.0])[:, None, None].expand(3, 5, 4)])
    shown = torch.tensor(draw_digits(images, ["a", "b"], "two", columns=2).axes[0].images[0].get_array())
    assert shown[0, :4].tolist() == [[0.0, 0.0, 0.0]] * 4
    assert shown[0, 4].tolist() == [1.0, 1.0, 1.0]
    assert shown[4, -1].tolist() == [1.0, 0.0, 0.5]
    feature_maps = draw_feature_maps(images[1], torch.rand(1, 2, 3, 3), [0.0])
    assert feature_maps.axes[0].images[0].get_array().shape == (5, 4, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [10, 62])
def test_cells_of_a_confusion_matrix_have_room(classes: int) -> None:
    figure = draw_confusion(torch.full((classes, classes), 88), [f"name {label}" for label in range(classes)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / classes
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_no_digits_is_a_figure_too() -> None:
    assert ink(draw_digits(torch.zeros(0, 28, 28), [], "none wrong")) > 0


def test_feature_maps_share_one_scale() -> None:
    states = torch.randn(5, 12, 26, 26)
    figure = draw_feature_maps(torch.rand(28, 28), states, (0.0, 0.25, 0.5, 0.75, 1.0))
    maps = figure.axes[1]
    largest = float(states[:, :8].abs().max())
    assert maps.images[0].get_clim() == (-largest, largest)
    assert [label.get_text() for label in maps.get_xticklabels()] == [
        "t = 0",
        "t = 0.25",
        "t = 0.5",
        "t = 0.75",
        "t = 1",
    ]
    assert [label.get_text() for label in maps.get_yticklabels()] == [str(i) for i in range(1, 9)]
    shown = torch.tensor(maps.images[0].get_array().filled(0.0))  # type: ignore[union-attr]
    torch.testing.assert_close(shown[:26, 29 : 29 + 26], states[1, 0])  # one step to the right is later
    torch.testing.assert_close(shown[29 : 29 + 26, :26], states[0, 1])  # one down is the next channel


def test_contact_sheet_says_what_it_leaves_out() -> None:
    figure = contact_sheet(torch.rand(70, 28, 28), [f"{i}.png" for i in range(70)], ["3"] * 70, [0.5] * 70)
    assert figure.axes[0].get_title() == "70 pictures, the first 64"
    assert texts(figure)[0] == "3 (50%)\n0.png"
    assert len(texts(figure)) == 64


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_file_name_can_be_drawn(name: str) -> None:
    short = shorten(name)
    assert len(short) <= 14
    assert "\n" not in short
    assert "$" not in short


def test_released_figures_leave_nothing_behind() -> None:
    """Without Python's collector: whatever points in a circle would stay."""
    gc.collect()
    gc.disable()
    try:
        figure = draw_confusion(torch.ones(10, 10))
        figure.canvas.draw()
        canvas = weakref.ref(figure.canvas)
        release(figure)
        assert canvas() is None
    finally:
        gc.enable()
