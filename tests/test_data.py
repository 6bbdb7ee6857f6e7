from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets.mnist import read_image_file

from odenet_lightning import MNISTDataModule, data, sources
from odenet_lightning.data import DigitDataset, keep_batch, normalise
from odenet_lightning.sources import DataError, Digits, raw_folder


def test_sample_is_split_and_stratified(sample_root: Path) -> None:
    module = MNISTDataModule(root=str(sample_root), source="sample")
    module.prepare_data()
    module.setup("fit")
    sizes = {part: len(digits) for part, digits in module.parts.items()}
    assert sizes == {"train": 4_000, "val": 500, "test": 500}
    assert module.digits_used == "sample"
    for part, each in (("train", 400), ("val", 50), ("test", 50)):
        assert module.parts[part].labels.bincount().tolist() == [each] * 10


def test_mnist_validation_comes_from_the_training_part(tiny_mnist: Path) -> None:
    module = MNISTDataModule(root=str(tiny_mnist), source="mnist", val_size=20, batch_size=8)
    module.prepare_data()
    module.setup("fit")
    assert {part: len(digits) for part, digits in module.parts.items()} == {"train": 70, "val": 20, "test": 30}
    train, test = (
        read_image_file(str(raw_folder(tiny_mnist) / f"{part}-images-idx3-ubyte")) for part in ("train", "t10k")
    )
    assert torch.equal(module.parts["test"].images, test)
    rows = torch.cat([module.parts["train"].images, module.parts["val"].images]).flatten(1).tolist()
    assert sorted(rows) == sorted(train.flatten(1).tolist())


@pytest.mark.parametrize("harm", ["truncate", "alter"])
@pytest.mark.parametrize("source", ["mnist", "auto"])
def test_harmed_file_is_refused(tiny_mnist: Path, harm: str, source: str) -> None:
    path = raw_folder(tiny_mnist) / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-100] if harm == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    module = MNISTDataModule(root=str(tiny_mnist), source=source, val_size=20)  # type: ignore[arg-type]
    module.prepare_data()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*truncated or altered"):
        module.setup("fit")


def test_auto_falls_back_with_a_warning(workdir: Path) -> None:
    module = MNISTDataModule()
    with pytest.warns(UserWarning, match=r"NOT THE FULL MNIST[\s\S]*4,000 digits[\s\S]*--data.root DIR"):
        module.prepare_data()
    module.setup("fit")
    assert module.digits_used == "sample"


def test_auto_takes_mnist_where_it_lies(tiny_mnist: Path) -> None:
    module = MNISTDataModule(root=str(tiny_mnist), val_size=20, batch_size=8)
    module.prepare_data()
    module.setup("fit")
    assert module.digits_used == "mnist"


def test_mnist_never_falls_back(workdir: Path) -> None:
    module = MNISTDataModule(source="mnist")
    with pytest.raises(DataError, match=r"data/MNIST/raw.*no mirror could be reached.*--data.source sample"):
        module.prepare_data()
    assert not (workdir / "data").exists()


def test_setup_never_downloads(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "download", lambda *_: pytest.fail("setup must not download"))
    module = MNISTDataModule()
    module.setup("fit")
    assert module.digits_used == "sample"


def test_interrupted_download_is_told(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("File not found or corrupted.\nmore")

    monkeypatch.setattr(sources, "reachable", lambda *_, **__: True)
    mnist = replace(sources.RELATIVES["mnist"], open=fail)
    monkeypatch.setitem(sources.RELATIVES, "mnist", mnist)
    with pytest.raises(DataError, match=r"the download failed \(File not found or corrupted\.\)"):
        MNISTDataModule(source="mnist").prepare_data()


def test_batches_are_the_posts(sample_root: Path) -> None:
    """ToTensor and Normalize(0.5, 0.5) of torchvision, digit by digit, are the yardstick."""
    from torchvision.transforms import v2

    module = MNISTDataModule(root=str(sample_root), source="sample", batch_size=16)
    module.setup("test")
    images, labels = module.on_after_batch_transfer(next(iter(module.test_dataloader())), 0)
    post = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
    expected = torch.stack([post(image.numpy()[..., None]) for image in module.parts["test"].images[:16]])
    torch.testing.assert_close(images, expected)
    assert labels.dtype == torch.int64
    assert images.min() >= -1.0
    assert images.max() <= 1.0


def test_batches_are_gathered_whole(sample_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigitDataset, "__getitem__", lambda *_: pytest.fail("one image at a time"))
    module = MNISTDataModule(root=str(sample_root), source="sample", batch_size=100)
    module.setup("fit")
    labels = torch.cat([labels for _, labels in module.train_dataloader()])
    assert labels.bincount().tolist() == [400] * 10, "every digit once an epoch"


def test_distributed_shares_cover_the_digits_once(sample_root: Path) -> None:
    digits = Digits(torch.arange(1_000)[:, None, None].expand(-1, 1, 1), torch.arange(1_000))
    seen: list[int] = []
    for rank in range(4):
        sampler = DistributedSampler(DigitDataset(digits), num_replicas=4, rank=rank, shuffle=True)
        loader = DataLoader(DigitDataset(digits), 32, sampler=sampler, collate_fn=keep_batch)  # type: ignore[arg-type]
        seen += [int(label) for _, labels in loader for label in labels]
    assert sorted(seen) == list(range(1_000))


def test_only_training_is_augmented(sample_root: Path) -> None:
    module = MNISTDataModule(root=str(sample_root), source="sample", augment=True)
    module.setup("fit")
    batch = module.parts["val"].images[:32], module.parts["val"].labels[:32]

    class Stub:
        training = False

    module.trainer = Stub()  # type: ignore[assignment]
    assert torch.equal(module.on_after_batch_transfer(batch, 0)[0], normalise(batch[0]))
    Stub.training = True
    assert not torch.equal(module.on_after_batch_transfer(batch, 0)[0], normalise(batch[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -3}, "batch_size"),
        ({"val_size": 0}, "val_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"source": "imagenet"}, "source"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNISTDataModule(**arguments)  # type: ignore[arg-type]


def test_batch_larger_than_the_digits_is_refused(sample_root: Path) -> None:
    module = MNISTDataModule(root=str(sample_root), source="sample", batch_size=4_001)
    with pytest.raises(DataError, match="4000 training images"):
        module.setup("fit")


def test_validation_must_leave_images_to_train_on(tiny_mnist: Path) -> None:
    module = MNISTDataModule(root=str(tiny_mnist), source="mnist", val_size=90)
    with pytest.raises(DataError, match="val_size must leave some of the 90 training images"):
        module.setup("fit")


@pytest.mark.mnist
def test_full_mnist_is_split(mnist_root: Path) -> None:
    module = MNISTDataModule(root=str(mnist_root), source="mnist")
    module.prepare_data()
    module.setup("fit")
    assert {part: len(digits) for part, digits in module.parts.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    assert module.parts["test"].labels[:5].tolist() == [7, 2, 1, 0, 4]
