"""What a terminal of 80 columns shows, and what Ctrl-C does there."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals")


def record(args: list[str], folder: Path, interrupts: list[str], timeout: float = 120.0) -> tuple[str, int]:
    """Run the command line on a terminal of 80 columns, with a Ctrl-C when each text has appeared; output and code."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would its children
        os.environ.update(PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-m", "odenet_lightning", *args])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown, begin, waiting = b"", time.monotonic(), list(interrupts)
    while time.monotonic() - begin < timeout:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65_536)
            except OSError:  # the other end is closed
                break
        if waiting and waiting[0].encode() in shown:
            waiting.pop(0)
            os.write(terminal, b"\x03")
    else:
        os.kill(child, 9)
    return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FIT = ["fit", "--data.source", "sample", "--trainer.accelerator", "cpu", "--pictures.every_n_epochs", "0"]
FIT += ["--trainer.log_every_n_steps", "5", "--data.batch_size", "100", "--trainer.max_epochs", "12"]


def test_a_fit_on_a_terminal(tmp_path: Path, sample_root: Path) -> None:
    """Ctrl-C in the second epoch: the state is kept, on a line of its own."""
    shown, code = record([*FIT, "--data.root", str(sample_root)], tmp_path, ["epoch 2/12 |█"])
    assert shown.startswith("loading PyTorch and Lightning ...\r"), "before the seconds that imports take"
    lines = [re.sub(r"\x1b\[\w", "", line).rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert max(len(line) for line in lines if "|" in line) < 80
    bar = r"epoch 1/12 \|[█▉-▏ ]{20}\| \d+/40 \d\d:\d\d, loss=\d\.\d{3}, NFE=2"
    assert any(re.fullmatch(bar, line) for line in lines)
    bar = r"epoch 2/12 \|[█▉-▏ ]{20}\| \d+/40 \S+, loss=\d\.\d{3}, val=\d\d\.\d%, NFE=2"
    assert any(re.fullmatch(bar, line) for line in lines)
    assert any(re.match(r"epoch 1  step 40  loss \d\.\d{3}  train \d\d\.\d\d%  val ", line) for line in lines)
    assert "Ctrl-C: the run ends after this step; again to end it at once, unsaved" in lines
    (told,) = (line for line in lines if line.startswith("interrupted at step"))
    assert code == 130
    last = torch.load(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert told.startswith(f"interrupted at step {last['global_step']}: the same command with --ckpt_path ")
    assert 40 < last["global_step"] < 80, "within the epoch"


@pytest.mark.parametrize("interrupts", [["loading"], ["loss=", "Ctrl-C: the run"]], ids=["imports", "twice"])
def test_ctrl_c_ends_at_once(interrupts: list[str], tmp_path: Path, sample_root: Path) -> None:
    shown, code = record([*FIT, "--data.root", str(sample_root)], tmp_path, interrupts)
    assert code == -2
    assert "Traceback" not in shown
