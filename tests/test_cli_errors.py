"""What goes wrong ends in one line that says what to do."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from odenet_lightning.callbacks import Throughput
from odenet_lightning.cli import main
from odenet_lightning.cli.endings import telling_what_is_left
from odenet_lightning.cli.errors import condense
from tests.helpers import QUICK, SAMPLE, fails

DOPRI5 = ["--model.net.solver", "Dopri5"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fit", "--trainer.max_epoch", "2x"], "trainer.max_epoch"),
        (["fit", "--no_such_flag", "1"], "no_such_flag"),
        (["fit", "--model.net", "NoSuchNet"], "model.net: no class 'NoSuchNet' is known: 'fit --help' lists"),
        (["fit", "--model.net.solver", "mine.X"], "solver: No module named 'mine'"),
        (["fit", "--model.net.solver", "odenet_lightning.solvers.X"], "has no attribute 'X'"),
        (["fit", "--model.net.channels", "2", "--model.net", "ODENet"], "its settings need its class before them"),
        (["fit", "--model.optimizer", "AdamW", "--model.optimizer.lr", "x"], "lr: Expected a float"),
        (["fit", "--data.augment", "Foo"], "data.augment: no class 'Foo' is known"),
        (["fit", "--data.augment", "Deform", "--data.augment.degrees", "x"], "degrees: Expected a float. Got value: x"),
        (["fit", "--model.net", "torch.nn.Linear"], "subclass of Classifier"),
        (["fit", "--model.net.channels", "0"], "channels must be a whole number of at least 1, not 0"),
        (["fit", "--model.net.channels", "-2"], "channels must be"),
        (["fit", "--model.net.channels", "six"], "channels: Expected a int. Got value: six"),
        (
            ["fit", *DOPRI5, "--model.net.solver.rtol", "0"],
            "rtol must be a positive number, not 0",
        ),
        (
            ["fit", *DOPRI5, "--model.net.solver.atol=-1e-3"],
            "atol must be a positive number, not -0.001",
        ),
        (
            ["fit", *DOPRI5, "--model.net.solver.rtol", "tight"],
            "rtol: Expected a float. Got value: tight",
        ),
        (["fit", "--model.net.solver", "Euler"], "give num_steps or step_size"),
        (["fit", "--model.net.gradient", "Adjoint", "--model.net.gradient.rtol", "0"], "rtol must be"),
        (["fit", "--model.net.gradient.rtol", "1e-3"], "Option 'rtol' is not accepted"),
        (["fit", "--model.schedule", "linear"], "'constant', 'one_cycle', 'cosine'"),
        (["fit", "--data.batch_size", "0"], "batch_size must be"),
        (["fit", "--data.batch_size", "4.5"], 'data.batch_size": Expected a int'),
        (["fit", "--data.source", "sample", "--data.batch_size", "4001"], "4000 training images"),
        (["fit", "--data.source", "mnist"], "data/MNIST/raw"),
        (["fit", "--config", "none.yaml"], "none.yaml"),
        (["train"], "no command 'train'"),
        (["test"], "--ckpt_path FILE"),
        (["test", "--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
        (["test", "--ckpt_path", "text.ckpt"], "text.ckpt is not a checkpoint that can be read"),
        (["test", "--ckpt_path", "foreign.ckpt"], "foreign.ckpt is not a Lightning checkpoint"),
        (["test", "--ckpt_path=cut.ckpt"], "cut.ckpt is not a checkpoint that can be read"),
        (["test", "--ckpt_path", "code.ckpt"], "code.ckpt is refused"),
        (["test", "--ckpt_path", "pickle.ckpt"], "pickle.ckpt is not a checkpoint that can be read"),
        (["test", "--ckpt_path", "good.ckpt", "--model.net.channels", "5", *SAMPLE], "does not fit the network"),
        (["fit", "--ckpt_path", "good.ckpt", "--trainer.max_epochs", "9"], "resume with the same length"),
        (["predict", "--ckpt_path", "good.ckpt"], "--data.images DIR"),
        (["predict", "--ckpt_path", "good.ckpt", "--data.images", "nowhere"], "cannot read 'nowhere': no such file"),
        (["predict", "--ckpt_path", "good.ckpt", "--data.images", "empty"], "there is nothing in the folder empty"),
        (["fit", "--data.source", "sample", "--trainer.default_root_dir", "text.ckpt/logs"], "text.ckpt"),
        pytest.param(
            ["fit", "--trainer.accelerator", "gpu"],
            "gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input_ends_in_one_line(
    args: list[str], told: str, run: Path, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = run / "checkpoints/last.ckpt"
    shutil.copy(good, workdir / "good.ckpt")
    (workdir / "cut.ckpt").write_bytes(good.read_bytes()[:-2_000])
    (workdir / "text.ckpt").write_text("not a checkpoint")
    torch.save({"weight": torch.zeros(3)}, workdir / "foreign.ckpt")
    torch.save({"state_dict": Payload()}, workdir / "code.ckpt")
    (workdir / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": Payload()}))
    (workdir / "empty").mkdir()
    if args and args[0] == "fit" and "--data.source" in args and "sample" in args:
        args = [*args, "--data.root", str(sample_root)]
    files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    if "good.ckpt" in args and args[0] == "fit":
        args = [*args, "--data.source", "sample", "--data.root", str(sample_root)]
    assert told in fails(args, capsys)
    assert not (workdir / "payload-ran").exists()
    assert {path: path.read_bytes() for path in files} == files, "something was overwritten"


class Payload:
    """Pickled, it runs code on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("payload-ran",))


def test_payload_would_run_if_it_were_let(workdir: Path) -> None:
    """The test above can fail: plain unpickling runs the payload."""
    pickle.loads(pickle.dumps(Payload()))
    assert (workdir / "payload-ran").exists()


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODENET_DEBUG", "1")
    with pytest.raises(Exception, match="there is no checkpoint"):
        main(["test", "--ckpt_path", "none.ckpt"])


def test_condense_finds_the_leaf() -> None:
    message = """Parser key "model.net":
      Does not validate against any of the Union subtypes
      Errors:
        - Parser key "rtol":
            Expected a <class 'float'>. Got value: abc
        - Expected a <class 'NoneType'>
      Given value: x"""
    assert condense(message) == "model.net.rtol: Expected a float. Got value: abc"
    assert condense("plain\n  message") == "plain message"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "c.yaml is empty"),
        (bytes(range(256)), "c.yaml cannot be read as a config: not a text"),
        (b"- a\n", "c.yaml holds no settings"),
        (b"a: [1\nb: 2", "c.yaml is not YAML in line 2"),
        (b"config: c.yaml", "c.yaml names itself"),
        (b"config: d.yaml", "names a config that is not there: d.yaml"),
        (b"trainer: 3", "c.yaml: trainer needs 'option: value' lines of its own"),
        (b"ckpt_path: 3", "ckpt_path must name a file, not 3"),
        (b"model: {net: {class_path: ODENet, init_args: [1]}}", "error: "),
        (b"model: {nett: 3}", "does not accept option 'model.nett'"),
    ],
)
def test_a_config_that_is_none(content: bytes, told: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_bytes(content)
    error = fails(["fit", "--config", "c.yaml"], capsys)
    assert told in error
    assert "unexpected" not in error


OWN_PARTS = """
from lightning import Callback
from odenet_lightning.augment import Augmentation


class Picky(Callback):
    def __init__(self, n: int = 2) -> None:
        raise ValueError("Expected n to be:\\n - at most 1")


class Packaged(Augmentation):
    def __init__(self) -> None:
        import no_such_package

    def __call__(self, images):
        return images


class Mistyped(Packaged):
    def __init__(self) -> None:
        self.no_such_method()
"""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--trainer.callbacks", "parts.Picky"], "Picky: Expected n to be: - at most 1"),
        (["--trainer.callbacks", "parts.Picky", "--trainer.callbacks.n", "3"], "Picky: Expected n to be: - at most 1"),
        (["--trainer.callbacks=[{class_path: parts.Picky}]"], "Picky: Expected n to be: - at most 1"),
        (["--data.augment", "parts.Packaged"], "Packaged: No module named 'no_such_package'"),
        (["--data.augment", "parts.Mistyped"], "Mistyped: 'Mistyped' object has no attribute 'no_such_method'"),
        (["--model.net.solver", "TorchDiffEq", "--model.net.solver.method", "dopri9"], "TorchDiffEq: torchdiffeq "),
    ],
)
def test_a_constructors_own_error_is_shown(
    args: list[str], told: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    Path("parts.py").write_text(OWN_PARTS)
    assert f"error: {told}" in fails(["fit", *args], capsys)


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_lost_process_names_no_checkpoint_that_is_not_there(
    workdir: Path, sample_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_kept: bool
) -> None:
    def lose(*_: Any) -> None:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr(Throughput, "on_validation_start" if not is_kept else "on_train_end", lose)
    few = [*QUICK[:4], "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    few += ["--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0", "--pictures.every_n_epochs", "0"]
    error = fails(["fit", *SAMPLE, "--data.root", str(sample_root), *few], capsys)
    assert "another process of this run has ended" in error
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    assert error.endswith(f"the same command with --ckpt_path {last} resumes it" if is_kept else "no checkpoint yet")


@pytest.mark.parametrize(("end", "code"), [(SIGTERMException(), 143), (SystemExit(1), 130), (SystemExit(2), 2)])
def test_an_early_end_has_the_exit_code_that_shells_expect(
    end: SystemExit, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(SystemExit) as ended, telling_what_is_left(trainer):
        raise end
    assert ended.value.code == code
    told = "interrupted at step 0: there is no checkpoint yet"
    assert (told in capsys.readouterr().err) == (code != 2)
