import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from odenet_lightning.figures import contact_sheet, draw_confusion, draw_digits, draw_feature_maps, shorten


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


def test_digits_are_titled_and_spare_places_empty() -> None:
    figure = draw_digits(torch.rand(9, 28, 28), [f"title {i}" for i in range(9)], "nine", columns=4)
    assert [axes.get_title() for axes in figure.axes] == [f"title {i}" for i in range(9)] + [""] * 3
    assert [bool(axes.images) for axes in figure.axes] == [True] * 9 + [False] * 3


def test_no_digits_is_a_figure_too() -> None:
    assert ink(draw_digits(torch.zeros(0, 28, 28), [], "none wrong")) > 0


def test_feature_maps_share_one_scale() -> None:
    states = torch.randn(5, 12, 26, 26)
    figure = draw_feature_maps(torch.rand(28, 28), states, (0.0, 0.25, 0.5, 0.75, 1.0))
    shown = [axes.images[0] for axes in figure.axes if axes.images and axes.get_title() != "digit"]
    limits = {image.get_clim() for image in shown if image.get_size() == (26, 26)}
    assert len(limits) == 1
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "digit",
        "t = 0",
        "t = 0.25",
        "t = 0.5",
        "t = 0.75",
        "t = 1",
    ]


def test_contact_sheet_says_what_it_leaves_out() -> None:
    figure = contact_sheet(torch.rand(70, 28, 28), [f"{i}.png" for i in range(70)], [3] * 70, [0.5] * 70)
    assert figure.get_suptitle() == "70 pictures, the first 64"
    assert figure.axes[0].get_title() == "3 (50%)\n0.png"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_file_name_can_be_drawn(name: str) -> None:
    short = shorten(name)
    assert len(short) <= 14
    assert "\n" not in short
    assert "$" not in short
