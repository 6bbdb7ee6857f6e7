"""MNIST's relatives and sets in colour, from files in torchvision's layout."""

import gzip
import hashlib
import pickle
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import scipy.io
import torch

from odenet_lightning import MNISTDataModule
from odenet_lightning.cli import main
from odenet_lightning.data import DataError, checksums, datasets, download
from odenet_lightning.data.datasets import RELATIVES, raw_folder
from tests.digits import write_idx

FILES = {
    "fashionmnist": tuple(checksums.MNIST_SHA256),
    "kmnist": tuple(checksums.MNIST_SHA256),
    "qmnist": (
        "qmnist-train-images-idx3-ubyte",
        "qmnist-train-labels-idx2-int",
        "qmnist-test-images-idx3-ubyte",
        "qmnist-test-labels-idx2-int",
    ),
    **{
        f"emnist-{split}": tuple(
            f"emnist-{split}-{part}-{kind}-ubyte"
            for part in ("train", "test")
            for kind in ("images-idx3", "labels-idx1")
        )
        for split in datasets.EMNIST.splits
    },
}
CLASSES = {"emnist-letters": 26, "emnist-balanced": 47, "emnist-bymerge": 47, "emnist-byclass": 62}


def write_tiny(root: Path, name: str) -> torch.Tensor:
    """80 + 40 made-up images in the set's own file format; returns the training images, upright."""
    generator = torch.Generator().manual_seed(0)
    kept = []
    names = FILES[name]
    for count, images_name, labels_name in ((80, *names[:2]), (40, *names[2:])):
        images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        kept.append(images)
        stored = images.transpose(1, 2).contiguous() if name.startswith("emnist") else images
        labels = torch.arange(count) % CLASSES.get(name, 10) + (name == "emnist-letters")  # counted from 1
        write_idx(raw_folder(root, name) / images_name, stored)
        if name == "qmnist":  # class, then seven columns about the writer
            labels = torch.stack([labels, *torch.randint(0, 4_000, (7, count), generator=generator)], 1)
            write_idx(raw_folder(root, name) / labels_name, labels.to(torch.int32))
        else:
            write_idx(raw_folder(root, name) / labels_name, labels.to(torch.uint8))
    return kept[0]


@pytest.mark.parametrize("name", FILES)
def test_relatives_load_from_their_own_files(name: str, workdir: Path) -> None:
    images = write_tiny(workdir / "data", name)
    module = MNISTDataModule(source=name, val_size=20, batch_size=8)  # type: ignore[arg-type]
    module.prepare_data()
    module.setup("fit")
    assert {part: len(digits) for part, digits in module.parts.items()} == {"train": 60, "val": 20, "test": 40}
    assert module.digits_used == name
    labels = torch.cat([module.parts["train"].labels, module.parts["val"].labels])
    classes = CLASSES.get(name, 10)
    assert len(module.class_names) == classes
    assert sorted(labels.tolist()) == sorted(index % classes for index in range(80))
    assert module.parts["test"].labels.tolist() == [index % classes for index in range(40)]
    assert labels.dtype == torch.int64
    rows = torch.cat([module.parts["train"].images, module.parts["val"].images]).flatten(1).tolist()
    numbered = zip(images.flatten(1).tolist(), (index % classes for index in range(80)), strict=True)
    assert sorted(zip(rows, labels.tolist(), strict=True)) == sorted(numbered), "the right way up, with its own label"
    batch, labels = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch.shape == (8, 1, 28, 28)
    assert labels.shape == (8,)


def test_relatives_name_their_classes() -> None:
    assert MNISTDataModule(source="fashionmnist").class_names[9] == "Ankle boot"
    assert MNISTDataModule(source="kmnist").class_names[1] == "ki"
    assert MNISTDataModule(source="emnist-letters").class_names == tuple("abcdefghijklmnopqrstuvwxyz")
    assert "".join(MNISTDataModule(source="emnist-balanced").class_names[8:12]) == "89AB"
    assert MNISTDataModule(source="cifar10").class_names[9] == "truck"
    for name in ("auto", "sample", "digits8x8", "qmnist", "emnist-digits", "svhn"):
        assert MNISTDataModule(source=name).class_names == tuple("0123456789")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
def test_missing_relative_is_told(name: str, workdir: Path) -> None:
    with pytest.raises(DataError, match=rf"no {name} in data/\w+/raw and no mirror could be reached"):
        MNISTDataModule(source=name).prepare_data()  # type: ignore[arg-type]


@pytest.mark.parametrize("harm", ["images", "labels", "count", "class"])
@pytest.mark.parametrize("name", FILES)
def test_broken_relative_is_told(name: str, harm: str, workdir: Path) -> None:
    root = workdir / "data"
    write_tiny(root, name)
    folder, (images, labels, *_) = raw_folder(root, name), FILES[name]
    if harm in ("images", "labels"):
        path = folder / (images if harm == "images" else labels)
        path.write_bytes(path.read_bytes()[:-5])
    elif harm == "count":
        write_idx(folder / images, torch.zeros(79, 28, 28, dtype=torch.uint8))
    else:
        wrong = torch.full((80, 8), 10, dtype=torch.int32) if name == "qmnist" else torch.full((80,), 63)
        write_idx(folder / labels, wrong if name == "qmnist" else wrong.to(torch.uint8))
    module = MNISTDataModule(source=name, val_size=20)  # type: ignore[arg-type]
    module.prepare_data()
    with pytest.raises(DataError, match=rf"the files of {name} in .*(cannot be read|do not fit together)"):
        module.setup("fit")


def test_download_is_torchvisions_and_checked(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a server on loopback: archives that are not the ones torchvision knows are refused, the others taken."""
    served = tmp_path_factory.mktemp("served")
    write_tiny(served, "kmnist")
    archives = {}
    for name in FILES["kmnist"]:
        archives[f"{name}.gz"] = gzip.compress((raw_folder(served, "kmnist") / name).read_bytes())

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = archives[self.path.rsplit("/", 1)[-1]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr(download, "reachable", lambda *_, **__: True)
    with HTTPServer(("127.0.0.1", 0), Files) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.KMNIST, "mirrors", [mirror])
        assert "download failed" in str(download.download("kmnist", workdir / "data"))
        known = [(name, hashlib.md5(body).hexdigest()) for name, body in archives.items()]
        monkeypatch.setattr(datasets.KMNIST, "resources", known)
        assert download.download("kmnist", workdir / "data") is None
        server.shutdown()
    assert len(datasets.load("kmnist", workdir / "data")[0]) == 80
    assert set(RELATIVES) == {"mnist", "cifar10", "svhn", *FILES}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_tiny_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """5 x 16 + 40 made-up images in CIFAR-10's pickles, whose checksums are taken for the right ones."""
    folder = raw_folder(root, "cifar10")
    folder.mkdir(parents=True)
    generator, kept = torch.Generator().manual_seed(0), []
    for files, count in ((datasets.CIFAR10.train_list, 16), (datasets.CIFAR10.test_list, 40)):
        known = []
        for name, _ in files:
            images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
            labels = [(len(kept) * count + index) % 10 for index in range(count)]
            (folder / name).write_bytes(pickle.dumps({"data": images.flatten(1).numpy(), "labels": labels}))
            known.append([name, md5(folder / name)])
            kept.append(images)
        monkeypatch.setattr(datasets.CIFAR10, "train_list" if count == 16 else "test_list", known)
    names = folder / "batches.meta"
    names.write_bytes(pickle.dumps({"label_names": list(RELATIVES["cifar10"].class_names)}))
    meta = {"filename": names.name, "key": "label_names", "md5": md5(names)}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return torch.cat(kept[:-1])


def write_tiny_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """80 + 40 made-up images in SVHN's files, in which the digit 0 has the label 10."""
    folder = raw_folder(root, "svhn")
    folder.mkdir(parents=True)
    generator, kept, known = torch.Generator().manual_seed(0), [], {}
    for part, count in (("train", 80), ("test", 40)):
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = [[index % 10 or 10] for index in range(count)]
        file = folder / f"{part}_32x32.mat"
        scipy.io.savemat(file, {"X": images.permute(2, 3, 1, 0).numpy(), "y": labels})
        known[part] = [RELATIVES["svhn"].mirrors[0], file.name, md5(file)]
        kept.append(images)
    monkeypatch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, **known})
    return kept[0]


@pytest.mark.parametrize(("name", "write"), [("cifar10", write_tiny_cifar10), ("svhn", write_tiny_svhn)])
def test_sets_in_colour_load_from_their_own_files(
    name: str, write: Callable[..., torch.Tensor], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=rf"no {name} in data/.* and no mirror could be reached"):
        MNISTDataModule(source=name).prepare_data()  # type: ignore[arg-type]
    images = write(workdir / "data", monkeypatch)
    module = MNISTDataModule(source=name, val_size=20, batch_size=8)  # type: ignore[arg-type]
    module.prepare_data()
    module.setup("fit")
    assert {part: len(digits) for part, digits in module.parts.items()} == {"train": 60, "val": 20, "test": 40}
    assert module.parts["test"].labels.tolist() == list(range(10)) * 4
    rows = torch.cat([module.parts["train"].images, module.parts["val"].images]).flatten(1).tolist()
    labels = torch.cat([module.parts["train"].labels, module.parts["val"].labels]).tolist()
    numbered = zip(images.flatten(1).tolist(), list(range(10)) * 8, strict=True)
    assert sorted(zip(rows, labels, strict=True)) == sorted(numbered)
    batch, _ = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch.shape == (8, *module.image_shape) == (8, 3, 32, 32)
    file = next(raw_folder(workdir / "data", name).glob("*test*"))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match="no mirror could be reached"):
        module.prepare_data()
    with pytest.raises(DataError, match=rf"the files of {name} in data/.* cannot be read \(Dataset not found or corr"):
        MNISTDataModule(source=name).setup("fit")  # type: ignore[arg-type]


def test_cifar10_yaml_trains(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_cifar10(workdir / "data", monkeypatch)
    config = Path(__file__).parents[1] / "configs/cifar10.yaml"
    few = ["--data.batch_size", "10", "--data.val_size", "20", "--trainer.max_epochs", "1", "--model.net.channels", "4"]
    main(["fit", "--config", str(config), *few, "--trainer.accelerator", "cpu", "--trainer.devices", "1"])
    assert "cifar10 (60 to train, 20 to validate)" in capsys.readouterr().out
