"""MNIST and its sample: where the digits come from, and how they are split."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.datasets.mnist import read_image_file

from odenet_lightning import MNISTDataModule
from odenet_lightning.data import (
    DataError,
    datasets,
    download,
)
from odenet_lightning.data import module as data_module
from odenet_lightning.data.datasets import raw_folder


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
    monkeypatch.setattr(data_module, "download", lambda *_: pytest.fail("setup must not download"))
    module = MNISTDataModule()
    module.setup("fit")
    assert module.digits_used == "sample"


def test_interrupted_download_is_told(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("File not found or corrupted.\nmore")

    monkeypatch.setattr(download, "reachable", lambda *_, **__: True)
    mnist = replace(datasets.RELATIVES["mnist"], open=fail)
    monkeypatch.setitem(datasets.RELATIVES, "mnist", mnist)
    with pytest.raises(DataError, match=r"the download failed \(File not found or corrupted\.\)"):
        MNISTDataModule(source="mnist").prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -3}, "batch_size"),
        ({"val_size": 0}, "val_size"),
        ({"source": "imagenet"}, "source"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNISTDataModule(**arguments)  # type: ignore[arg-type]


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
