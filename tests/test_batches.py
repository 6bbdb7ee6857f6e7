"""Batches: their order, their shares for processes, and how an epoch is resumed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from lightning.pytorch.plugins import Precision

from odenet_lightning import ClassifierModule, MNISTDataModule, ResNet
from odenet_lightning.callbacks import Resume
from odenet_lightning.data import (
    DataError,
    Digits,
    EpochOrder,
    EvaluationBatches,
    TrainingBatches,
    normalise,
)
from tests.training import trainer_in


def test_batches_are_the_posts(sample_root: Path) -> None:
    """ToTensor and Normalize(0.5, 0.5) of torchvision, digit by digit, are the yardstick."""
    from torchvision.transforms import v2

    module = MNISTDataModule(root=str(sample_root), source="sample", batch_size=16)
    module.setup("test")
    raw = next(iter(module.test_dataloader()))
    assert (raw[0].dtype, raw[0].shape) == (torch.uint8, (16, 28, 28))
    images, labels = module.on_after_batch_transfer(raw, 0)
    assert torch.equal(normalise(raw[0]), images), "what a loop without a Trainer does"
    post = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
    expected = torch.stack([post(image.numpy()[..., None]) for image in raw[0]])
    torch.testing.assert_close(images, expected)
    assert labels.dtype == torch.int64
    assert images.min() >= -1.0
    assert images.max() <= 1.0


def numbered(count: int) -> Digits:
    """Images whose pixel is their own number."""
    return Digits(torch.arange(count)[:, None, None], torch.arange(count))


def test_an_epoch_takes_every_image_once() -> None:
    batches = TrainingBatches(numbered(1_000), 64, EpochOrder(1_000, seed=1))
    epochs = []
    for epoch in range(3):
        batches.sampler.set_epoch(epoch)
        taken = list(batches)
        assert len(taken) == len(batches) == 15, "an incomplete batch is left out"
        assert all(torch.equal(images.flatten(), labels) for images, labels in taken)
        epochs.append(torch.cat([labels for _, labels in taken]))
        assert len(epochs[-1].unique()) == 960
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


@given(
    count=st.integers(40, 300),
    batch=st.integers(1, 8),
    processes=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
)
def test_processes_together_see_what_one_sees(count: int, batch: int, processes: int, seed: int, epoch: int) -> None:
    def taken(size: int, rank: int, processes: int) -> list[torch.Tensor]:
        order = EpochOrder(count, seed)
        order.set_epoch(epoch)
        return [labels for _, labels in TrainingBatches(numbered(count), size, order, rank, processes)]

    alone = taken(batch * processes, 0, 1)
    shares = [taken(batch, rank, processes) for rank in range(processes)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, expected in enumerate(alone):
        assert torch.equal(torch.cat([share[step] for share in shares]), expected)


@given(count=st.integers(20, 200), stop=st.integers(0, 20), epoch=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_resumed_epoch_goes_on_where_it_was(count: int, stop: int, epoch: int, seed: int) -> None:
    def begin(epoch: int, state: dict[str, int] | None = None) -> TrainingBatches:
        batches = TrainingBatches(numbered(count), 7, EpochOrder(count, seed))
        if state is not None:
            batches.load_state_dict(state)
        batches.sampler.set_epoch(epoch)
        return batches

    whole = [labels.tolist() for _, labels in begin(epoch)]
    first, stop = begin(epoch), min(stop, len(whole))
    begun = [labels.tolist() for _, (_, labels) in zip(range(stop), first, strict=False)]
    resumed = begin(epoch, first.state_dict())
    assert begun + [labels.tolist() for _, labels in resumed] == whole
    assert [labels.tolist() for _, labels in resumed] == whole, "once: the next pass is whole again"
    assert len(list(begin(epoch + 1, first.state_dict()))) == len(whole), "another epoch starts at its beginning"


@given(count=st.integers(1, 200), batch=st.integers(1, 50), processes=st.integers(1, 5))
def test_evaluation_sees_every_image_once(count: int, batch: int, processes: int) -> None:
    shares = [EvaluationBatches(numbered(count), batch, rank, processes) for rank in range(processes)]
    taken = [list(share) for share in shares]
    assert [len(share) for share in taken] == [len(share) for share in shares]
    labels = [labels for share in taken for _, labels in share]
    assert torch.cat(labels).tolist() == list(range(count)), "in order, none twice"
    assert max(map(len, labels)) <= batch


def test_order_follows_the_seed(sample_root: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        module = MNISTDataModule(root=str(sample_root), source="sample")
        module.setup("fit")
        torch.rand(3)  # what else is drawn does not matter
        return next(iter(module.train_dataloader()))[0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_order_and_place_are_kept_with_a_checkpoint(sample_root: Path) -> None:
    def module(seed: int) -> MNISTDataModule:
        made = MNISTDataModule(root=str(sample_root), source="sample", batch_size=500)
        made.setup("fit")
        torch.manual_seed(seed)
        return made

    first = module(77)
    assert first.state_dict() == {}
    whole = [labels for _, labels in first.train_dataloader()]
    stream = iter(first.train_dataloader())
    for _ in range(3):
        next(stream)
    resumed = module(78)  # the checkpoint's order counts, not the new seed's
    resumed.load_state_dict(first.state_dict())
    rest = [labels for _, labels in resumed.train_dataloader()]
    assert len(rest) == 5
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_each_fit_draws_its_order_from_its_own_seed(tmp_path: Path, sample_root: Path) -> None:
    """Of one data module; a resumed fit leaves nothing behind for the next one."""
    data = MNISTDataModule(root=str(sample_root), source="sample", batch_size=800, augment=False)
    seen: list[torch.Tensor] = []

    def fit(seed: int, steps: int, ckpt_path: Path | None = None) -> Trainer:
        torch.manual_seed(seed)
        module = ClassifierModule(ResNet(2, 0), schedule="constant")
        module.on_train_batch_start = lambda batch, _: seen.append(batch[1])  # type: ignore[method-assign]
        trainer = trainer_in(tmp_path, max_epochs=1, max_steps=steps, callbacks=[Resume()], limit_val_batches=0)
        seen.clear()
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return trainer

    fit(0, 5)
    first = list(seen)
    fit(1, 5)
    assert not torch.equal(first[0], seen[0])
    fit(0, 2).save_checkpoint(tmp_path / "two.ckpt")
    fit(1, 5, tmp_path / "two.ckpt")
    assert torch.equal(torch.cat(seen), torch.cat(first[2:])), "the rest, in the checkpoint's order"
    fit(0, 5)
    assert torch.equal(torch.cat(seen), torch.cat(first)), "from the start"


def test_only_training_is_augmented(sample_root: Path) -> None:
    module = MNISTDataModule(root=str(sample_root), source="sample", augment=True)
    module.setup("fit")
    batch = module.parts["val"].images[:32], module.parts["val"].labels[:32]

    class Stub:
        training = False
        precision_plugin = Precision()

    module.trainer = Stub()  # type: ignore[assignment]
    assert torch.equal(module.on_after_batch_transfer(batch, 0)[0], normalise(batch[0]))
    Stub.training = True
    assert not torch.equal(module.on_after_batch_transfer(batch, 0)[0], normalise(batch[0]))


def test_batch_larger_than_the_digits_is_refused(sample_root: Path) -> None:
    module = MNISTDataModule(root=str(sample_root), source="sample", batch_size=4_001)
    module.setup("fit")
    with pytest.raises(DataError, match="more than the 4000 training images"):
        module.train_dataloader()


def test_other_batches_are_refused_within_an_epoch() -> None:
    first = TrainingBatches(numbered(100), 10, EpochOrder(100, 0))
    stream = iter(first)
    next(stream)
    with pytest.raises(DataError, match="an epoch of 10 images per step, this run takes 20"):
        TrainingBatches(numbered(100), 10, EpochOrder(100, 0), processes=2).load_state_dict(first.state_dict())
    for _ in stream:
        pass
    TrainingBatches(numbered(100), 10, EpochOrder(100, 0), processes=2).load_state_dict(first.state_dict())


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_first_batches_are_a_fair_draw(sample_root: Path, part: str) -> None:
    """Although the sample's digits are sorted by class; the whole is the same as ever."""
    module = MNISTDataModule(root=str(sample_root), source="sample", batch_size=100)
    module.setup("test")
    batches = list(getattr(module, f"{part}_dataloader")())
    assert len(batches[0][1].unique()) == 10
    assert torch.equal(batches[0][1], next(iter(getattr(module, f"{part}_dataloader")()))[1]), "the same each time"
    seen = torch.cat([images for images, _ in batches]).flatten(1).tolist()
    assert sorted(seen) == sorted(module.parts[part].images.flatten(1).tolist())
