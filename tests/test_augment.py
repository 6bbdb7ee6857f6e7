import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odenet_lightning.augment import Augmentation, Deform, Shift
from odenet_lightning.data import normalise


@given(largest=st.integers(0, 3), seed=st.integers(0, 1_000))
def test_shift_moves_whole_images(largest: int, seed: int) -> None:
    torch.manual_seed(seed)
    images = torch.full((5, 1, 9, 9), -1.0)
    images[:, 0, 4, 4] = 1.0
    shifted = Shift(largest)(images)
    assert shifted.shape == images.shape
    for image in shifted[:, 0]:
        (row, column) = (image == 1.0).nonzero()[0].tolist()
        assert abs(row - 4) <= largest
        assert abs(column - 4) <= largest
        assert (image == -1.0).sum() == 80


def test_shifts_differ_within_a_batch() -> None:
    torch.manual_seed(0)
    images = normalise(torch.arange(784).remainder(251).to(torch.uint8).view(1, 28, 28).expand(64, -1, -1))
    assert len(Shift()(images).flatten(1).unique(dim=0)) == 9, "all nine shifts of up to a pixel"


STILL = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic": 0.0}


def blob(row: float, column: float, size: int = 28) -> torch.Tensor:
    """A smooth spot on a dark ground, `[1, 1, 28, 28]`."""
    grid = torch.arange(size, dtype=torch.float64)
    spot = torch.exp(-((grid[:, None] - row) ** 2 + (grid[None, :] - column) ** 2) / 8)
    return (2 * spot - 1).float()[None, None]


def centre(images: torch.Tensor) -> torch.Tensor:
    """Centre of brightness of each image, `[B, 2]`: row, column."""
    light = images[:, 0].double() + 1
    grid = torch.arange(images.shape[-1], dtype=torch.float64)
    total = light.sum((1, 2))
    return torch.stack([(light.sum(2) @ grid) / total, (light.sum(1) @ grid) / total], 1)


def test_deforming_by_nothing_changes_nothing() -> None:
    images = torch.rand(4, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(Deform(**STILL)(images), images, atol=1e-5, rtol=0)


@given(pixels=st.floats(0.5, 3.0), seed=st.integers(0, 100))
def test_deform_shifts_by_up_to_so_many_pixels(pixels: float, seed: int) -> None:
    torch.manual_seed(seed)
    moved = centre(Deform(**STILL | {"shift": pixels})(blob(13.5, 13.5).expand(400, -1, -1, -1))) - 13.5
    assert moved.abs().max() <= pixels + 1e-3
    assert moved.abs().max(0).values.min() >= 0.9 * pixels, "the whole range is drawn from, on both axes"
    assert moved.mean(0).abs().max() < 0.2 * pixels


def test_deform_turns_about_the_middle() -> None:
    torch.manual_seed(0)
    turned = centre(Deform(**STILL | {"degrees": 30.0})(blob(13.5, 21.5).expand(400, -1, -1, -1))) - 13.5
    torch.testing.assert_close(turned.norm(dim=1), torch.full((400,), 8.0, dtype=torch.float64), atol=0.05, rtol=0)
    angles = torch.rad2deg(torch.atan2(turned[:, 0], turned[:, 1]))
    assert 27 < angles.max() < 30.5
    assert -30.5 < angles.min() < -27


def test_deform_scales_about_the_middle() -> None:
    torch.manual_seed(0)
    scaled = centre(Deform(**STILL | {"scale": 0.2})(blob(13.5, 21.5).expand(400, -1, -1, -1))) - 13.5
    assert scaled[:, 0].abs().max() < 0.05
    assert 8 / 1.21 < scaled[:, 1].min() < 8 / 1.15
    assert 8 / 0.85 < scaled[:, 1].max() < 8 / 0.79


def test_deform_shears_along_the_rows() -> None:
    torch.manual_seed(0)
    sheared = centre(Deform(**STILL | {"shear": 0.3})(blob(21.5, 13.5).expand(400, -1, -1, -1))) - 13.5
    torch.testing.assert_close(sheared[:, 0], torch.full((400,), 8.0, dtype=torch.float64), atol=0.05, rtol=0)
    assert 2.2 < sheared[:, 1].abs().max() < 2.45


def test_elastic_displacements_have_the_size_asked_for() -> None:
    torch.manual_seed(0)
    corner = Deform(elastic=1.5)._bend(torch.zeros(2_000, 1, 28, 28))[:, 0, 0]
    torch.testing.assert_close(corner.std(0) * 14, torch.full((2,), 1.5), atol=0.1, rtol=0)


def test_deformed_ground_is_dark() -> None:
    torch.manual_seed(0)
    images = Deform(degrees=45, scale=0.3, shear=0.3, shift=5, elastic=2)(torch.full((8, 1, 28, 28), -1.0))
    torch.testing.assert_close(images, torch.full_like(images, -1.0))


@pytest.mark.parametrize("augmentation", [Shift(2), Deform(elastic=1.0)], ids=["shift", "deform"])
def test_same_seed_same_images(augmentation: Augmentation) -> None:
    images = blob(10, 12).expand(16, -1, -1, -1)
    first, again = ((torch.manual_seed(3), augmentation(images))[1] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augmentation(images))
    assert len(first.flatten(1).unique(dim=0)) > 8, "each image gets its own draw"


@pytest.mark.parametrize("name", ["degrees", "scale", "shear", "shift", "elastic"])
def test_negative_deformations_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        Deform(**{name: -1.0})


def test_vanishing_scale_and_negative_shift_are_refused() -> None:
    with pytest.raises(ValueError, match=r"less than 0\.5"):
        Deform(scale=0.5)
    with pytest.raises(ValueError, match="pixels must not be negative"):
        Shift(-1)
