"""The built-in sample, its cache, and splits by class."""

import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import torch
from hypothesis import given
from hypothesis import strategies as st

from odenet_lightning import MNISTDataModule
from odenet_lightning.data import Digits, download, load_sample, sample
from odenet_lightning.data.digits import split_stratified


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


def test_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / sample.SAMPLE_CACHE).mkdir()
    assert len(load_sample(tmp_path)) == 5_000
    assert [path.name for path in tmp_path.iterdir()] == [sample.SAMPLE_CACHE]


def test_altered_cache_is_not_trained_on(tmp_path: Path, sample_root: Path) -> None:
    digits = load_sample(sample_root)
    images = digits.images.clone()
    images[0, 0, 0] += 1
    torch.save({"images": images, "labels": digits.labels}, tmp_path / sample.SAMPLE_CACHE)
    assert torch.equal(load_sample(tmp_path).images, digits.images)


def test_unwritable_root_still_gives_the_sample(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(load_sample(tmp_path / "file" / "data")) == 5_000


def test_digits_of_8_by_8_pixels(workdir: Path) -> None:
    module = MNISTDataModule(source="digits8x8")
    module.prepare_data()
    module.setup("fit")
    counts = {part: digits.labels.bincount() for part, digits in module.parts.items()}
    assert {part: int(count.sum()) for part, count in counts.items()} == {"train": 1_259, "val": 179, "test": 359}
    assert all(int(count.max() - count.min()) <= 9 for count in counts.values()), "stratified"
    images = module.parts["train"].images
    assert (images.dtype, images.shape) == (torch.uint8, (1_259, 8, 8))
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert not (workdir / "data").exists()


@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=6),
    shares=st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.45)),
    seed=st.integers(0, 2**31),
)
def test_every_class_is_cut_in_the_same_shares(counts: list[int], shares: tuple[float, float], seed: int) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    parts = split_stratified(Digits(torch.arange(len(labels)), labels), *shares, seed)
    assert sorted(torch.cat([part.images for part in parts.values()]).tolist()) == list(range(len(labels)))
    for part, share in zip(("val", "test"), shares, strict=True):
        expected = [max(1, round(share * count)) for count in counts]
        assert parts[part].labels.bincount(minlength=len(counts)).tolist() == expected
