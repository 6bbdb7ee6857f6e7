import gzip
import hashlib
import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from odenet_lightning import MNISTDataModule
from odenet_lightning.data import DataError, Digits, datasets, download, load_sample, sample
from odenet_lightning.data.datasets import RELATIVES, raw_folder
from tests.conftest import write_idx


def test_parts_are_disjoint_and_complete(sample_root: Path) -> None:
    digits = load_sample(sample_root)
    numbered = Digits(torch.arange(5_000)[:, None, None].expand(-1, 1, 1), digits.labels)
    parts = sample.split_sample(numbered, seed=3)
    seen = torch.cat([part.images.flatten() for part in parts.values()])
    assert sorted(seen.tolist()) == list(range(5_000))


def test_split_depends_on_its_seed_alone(sample_root: Path) -> None:
    digits = load_sample(sample_root)
    torch.manual_seed(1)
    first = sample.split_sample(digits, seed=0)
    torch.manual_seed(2)
    again, other = sample.split_sample(digits, seed=0), sample.split_sample(digits, seed=1)
    assert torch.equal(first["train"].images, again["train"].images)
    assert not torch.equal(first["train"].images, other["train"].images)


def test_silent_mirror_costs_seconds() -> None:
    """A server that takes the connection and never answers must not hold the run up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        begin = time.perf_counter()
        assert not download.reachable([f"http://127.0.0.1:{server.getsockname()[1]}/"], timeout=0.5)
    assert time.perf_counter() - begin < 5.0


def test_any_answer_counts_as_reachable() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers everything with 501
        Thread(target=server.handle_request, daemon=True).start()
        assert download.reachable([f"http://127.0.0.1:{server.server_port}/"], timeout=5.0)


def test_sample_survives_a_broken_cache(tmp_path: Path, sample_root: Path) -> None:
    (tmp_path / sample.SAMPLE_CACHE).write_bytes(b"no archive")
    assert torch.equal(load_sample(tmp_path).images, load_sample(sample_root).images)
    assert (tmp_path / sample.SAMPLE_CACHE).stat().st_size > 1_000_000, "the cache was not written anew"


def test_altered_cache_is_not_trained_on(tmp_path: Path, sample_root: Path) -> None:
    digits = load_sample(sample_root)
    images = digits.images.clone()
    images[0, 0, 0] += 1
    torch.save({"images": images, "labels": digits.labels}, tmp_path / sample.SAMPLE_CACHE)
    assert torch.equal(load_sample(tmp_path).images, digits.images)


def test_unwritable_root_still_gives_the_sample(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(load_sample(tmp_path / "file" / "data")) == 5_000


FILES = {
    "fashionmnist": tuple(datasets.MNIST_FILES),
    "kmnist": tuple(datasets.MNIST_FILES),
    "qmnist": (
        "qmnist-train-images-idx3-ubyte",
        "qmnist-train-labels-idx2-int",
        "qmnist-test-images-idx3-ubyte",
        "qmnist-test-labels-idx2-int",
    ),
    "emnist-digits": (
        "emnist-digits-train-images-idx3-ubyte",
        "emnist-digits-train-labels-idx1-ubyte",
        "emnist-digits-test-images-idx3-ubyte",
        "emnist-digits-test-labels-idx1-ubyte",
    ),
}


def write_tiny(root: Path, name: str) -> torch.Tensor:
    """80 + 40 made-up images in the set's own file format; returns the training images, upright."""
    generator = torch.Generator().manual_seed(0)
    kept = []
    names = FILES[name]
    for count, images_name, labels_name in ((80, *names[:2]), (40, *names[2:])):
        images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        kept.append(images)
        stored = images.transpose(1, 2).contiguous() if name == "emnist-digits" else images
        labels = torch.arange(count) % 10
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
    assert labels.bincount().tolist() == [8] * 10
    assert module.parts["test"].labels.tolist() == list(range(10)) * 4
    assert labels.dtype == torch.int64
    rows = torch.cat([module.parts["train"].images, module.parts["val"].images]).flatten(1).tolist()
    assert sorted(rows) == sorted(images.flatten(1).tolist()), "every image once, the right way up"
    batch, labels = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch.shape == (8, 1, 28, 28)
    assert labels.shape == (8,)


def test_relatives_name_their_classes() -> None:
    assert MNISTDataModule(source="fashionmnist").class_names[9] == "Ankle boot"
    assert MNISTDataModule(source="kmnist").class_names[1] == "ki"
    for name in ("auto", "sample", "qmnist", "emnist-digits"):
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
        wrong = torch.full((80, 8), 10, dtype=torch.int32) if name == "qmnist" else torch.full((80,), 10)
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
    assert set(RELATIVES) == {"mnist", *FILES}
