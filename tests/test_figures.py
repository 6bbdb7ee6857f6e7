import gc
import weakref
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from odenet_lightning.figures import (
    caption,
    contact_sheet,
    draw_confusion,
    draw_digits,
    draw_feature_maps,
    log_axis,
    new_figure,
    release,
    shorten,
    signed_scale,
    tile,
)
from tests.helpers import outside


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
    assert figure.axes[0].get_title() == "true against predicted classes: 400 of 407 right"
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
    assert feature_maps.axes[0].images[1].get_array().shape == (5, 4, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [10, 62])
def test_cells_of_a_confusion_matrix_have_room(classes: int) -> None:
    figure = draw_confusion(torch.full((classes, classes), 88), [f"name {label}" for label in range(classes)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / classes
    assert max(text.get_window_extent().width for text in axes.texts) < cell


NAMES = ["Weeping willow", "Horse chestnut", "0", "MMMMMMMM WWWWWWWW WWWWWW", "a_very_long_name_without_any_space.png"]


@pytest.mark.parametrize("count", [1, 3, 12, 40])
@pytest.mark.parametrize("shape", [(3, 40, 20), (1, 20, 40), (28, 28)])
def test_captions_of_digits_are_neither_cut_nor_on_each_other(count: int, shape: tuple[int, ...]) -> None:
    titles = [f"{NAMES[index % 5]} (99%)\n{NAMES[index % 3 + 2]}" for index in range(count)]
    figure = draw_digits(torch.rand(count, *shape), titles, f"{count} pictures: predicted class and file")
    assert not outside(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    assert "".join(texts(figure)).replace("\n", "").count("willow") == sum("willow" in title for title in titles)


def test_a_sheet_has_no_bands_of_nothing() -> None:
    """No more than a text's height of white above, between and below the pictures."""
    for count in (3, 31):
        figure = draw_digits(torch.full((count, 28, 28), -1.0), ["7 taken for 1"] * count, "wrong digits")
        figure.canvas.draw()
        pixels = torch.tensor(bytearray(figure.canvas.buffer_rgba()), dtype=torch.uint8)  # type: ignore[attr-defined]
        rows = (pixels.view(figure.canvas.get_width_height()[1], -1, 4)[..., :3] < 250).any(-1).any(-1)
        longest = max(len(run) for run in "".join("1" if row else "0" for row in rows.tolist()).split("1"))
        assert longest <= 20


@pytest.mark.parametrize("shape", [(28, 28), (3, 32, 32), (3, 48, 16)])
def test_the_image_lies_beside_the_first_channel(shape: tuple[int, ...]) -> None:
    height, width = shape[-2] - 2, shape[-1] - 2
    figure = draw_feature_maps(torch.rand(shape), torch.randn(5, 3, height, width), (0.0, 0.25, 0.5, 0.75, 1.0))
    assert not outside(figure)
    maps, image = figure.axes[0].images
    left, right, bottom, top = image.get_extent()
    assert (top, bottom, right - left) == (0, height, width), "as large as a map, in the line of the first channel"
    assert right < maps.get_extent()[0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50))
def test_signed_scales_are_white_at_zero(values: list[float]) -> None:
    scale = signed_scale(torch.tensor(values))
    assert scale["vmin"] == -scale["vmax"] < 0
    assert scale["vmax"] <= max(1e-6, *map(abs, values)) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("base", "values", "labels"),
    [
        (2, [1, 2, 64], ["1", "2", "4", "8", "16", "32", "64"]),
        (2, [0.06, 2], ["0.0625", "0.125", "0.25", "0.5", "1", "2"]),
        (10, [170, 6_500], ["200", "500", "1,000", "2,000", "5,000"]),
        (10, [0.03, 13], ["0.1", "1", "10"]),
        (10, [1e-5, 0.3], [f"$\\mathdefault{{10^{{{power}}}}}$" for power in range(-5, 0)]),
    ],
)
def test_ticks_of_logarithmic_axes(base: Literal[2, 10], values: list[float], labels: list[str]) -> None:
    axes = new_figure(4, 3).subplots()
    axes.plot(values, values)
    log_axis(axes, "x", base)
    axes.get_figure().canvas.draw()  # type: ignore[union-attr]
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [label.get_text() for place, label in ticks if low <= place <= high] == labels
    assert not len(axes.get_xticks(minor=True))


def test_a_caption_is_wrapped_within_its_figure() -> None:
    figure = new_figure(5, 3)
    figure.subplots().set_xlabel("x")
    caption(figure, "WIDE WORDS and an evaluation of f(t, y), " * 12)
    assert not outside(figure)
    label, below = figure.axes[0].xaxis.label, figure.findobj(Text)[-1]
    assert not label.get_window_extent().overlaps(below.get_window_extent())


def test_no_digits_is_a_figure_too() -> None:
    assert ink(draw_digits(torch.zeros(0, 28, 28), [], "none wrong")) > 0


def test_feature_maps_share_one_scale() -> None:
    states = torch.randn(5, 12, 26, 26)
    figure = draw_feature_maps(torch.rand(28, 28), states, (0.0, 0.25, 0.5, 0.75, 1.0))
    maps = figure.axes[0]
    assert maps.images[0].get_clim() == tuple(signed_scale(states[:, :8])[end] for end in ("vmin", "vmax"))
    assert [label.get_text() for label in maps.get_xticklabels()] == [
        "image",
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
    assert figure.axes[0].get_title() == "70 pictures, the first 64: predicted class (its probability) and file"
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
