"""Shared fixtures: digits that need no network, a finished run, a place to run in, and the kernels, built anew."""

import hashlib
import importlib.resources
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from odenet_lightning import graphs
from odenet_lightning.cli import main
from odenet_lightning.data import checksums, datasets, download, load_sample
from odenet_lightning.kernels import conv_field
from odenet_lightning.kernels.compiled import Library
from tests.called_again import CalledAgain
from tests.digits import write_idx
from tests.helpers import FEW
from tests.kernel_fields import BUILDS, flags
from tests.pets import save

# Lightning's own call of jsonargparse is deprecated there; it is theirs to mend
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

# one thread: bits do not depend on the machine, and tests running side by side do not wait for each other
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for folders of tests; for single files and tests none beside this one, which starts sooner."""
    return 2 if any(Path(arg).is_dir() for arg in config.args) else 0


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose sample is parsed and cached already."""
    root = tmp_path_factory.mktemp("digits")
    load_sample(root)
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, sample_root: Path) -> Path:
    """A finished run's folder, made once; tests work on copies or only read."""
    folder = tmp_path_factory.mktemp("run")
    before = Path.cwd()
    os.chdir(folder)
    try:
        main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *FEW])
    finally:
        os.chdir(before)
    return folder / "lightning_logs" / "version_0"


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, without a network; the modules that a test imports from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "reachable", lambda *_, **__: False)
    yield tmp_path
    for name, module in list(sys.modules.items()):  # the next test may write another file of the same name
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with 90 + 30 made-up digits in MNIST's layout, whose checksums are taken for the right ones."""
    root, generator = tmp_path / "tiny", torch.Generator().manual_seed(0)
    sums = {}
    for part, count in (("train", 90), ("t10k", 30)):
        labels = torch.arange(count) % 10
        images = torch.randint(0, 256, (count, 28, 28), generator=generator)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = datasets.raw_folder(root) / f"{part}-{kind}-ubyte"
            write_idx(path, values.to(torch.uint8))
            sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(checksums, "MNIST_SHA256", sums)
    return root


@pytest.fixture
def mnist_root() -> Path:
    """Full MNIST, where the environment says that it is."""
    return Path(os.environ["ODENET_MNIST"])


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A cat for each of 10 reds and a dog for each of 20 greens."""
    for name, count in (("cat", 10), ("dog", 20)):
        for index in range(count):
            colour = (10 * index, 0, 0) if name == "cat" else (0, 10 * index, 0)
            save(tmp_path / "pets" / name / f"{index}.png", colour)
    return tmp_path / "pets"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the recorders do."""
    calls: list[str] = []
    monkeypatch.setattr(graphs, "recorder_for", lambda device: CalledAgain(calls, waits=False))
    return calls


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    """Every build that this machine can run, made anew, without warnings."""
    source = importlib.resources.files("odenet_lightning.kernels") / "conv_field.c"
    made = {}
    for name in BUILDS:
        path = tmp_path_factory.mktemp("kernels") / f"{name}.so"
        command = ["cc", *flags(name), "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", str(source), "-o", str(path)]
        subprocess.run([*command, "-lm"], check=True)
        made[name] = Library(name, str(path))
    return made


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, compiled: dict[str, Library], monkeypatch: pytest.MonkeyPatch) -> Library:
    """A build, in the place of the installed one."""
    monkeypatch.setattr(conv_field, "library", lambda: compiled[request.param])
    return compiled[request.param]
