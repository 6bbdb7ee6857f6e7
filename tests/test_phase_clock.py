"""Where the time of a fit went: every moment in one phase, the innermost."""

import json
import time
from pathlib import Path

import pytest

from odenet_lightning.phase_clock import OUTERMOST, PHASES, PhaseClock


def test_every_moment_counts_once_and_in_the_innermost_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = PhaseClock(str(tmp_path / "phases.json"))

    def after(seconds: float, name: str, is_start: bool = True) -> None:
        nonlocal now
        now += seconds
        (clock.start if is_start else clock.stop)(name)

    after(1, "run_training_epoch")
    after(2, "run_training_batch")
    after(4, "[Strategy]SingleDeviceStrategy.training_step")
    after(8, "[Strategy]SingleDeviceStrategy.training_step", False)
    after(16, "run_training_batch", False)
    after(32, "[Callback]Pictures.on_validation_epoch_end")
    after(64, "[LightningModule]ClassifierModule.something")
    after(128, "[LightningModule]ClassifierModule.something", False)
    after(256, "[Callback]Pictures.on_validation_epoch_end", False)
    after(512, "[Callback]BestCheckpoint{'monitor': 'val/acc'}.on_train_epoch_end")
    after(1024, "save_checkpoint")
    after(2048, "save_checkpoint", False)
    after(4096, "[Callback]BestCheckpoint{'monitor': 'val/acc'}.on_train_epoch_end", False)
    after(8192, "[Strategy]SingleDeviceStrategy.validation_step")
    after(16384, "[Strategy]SingleDeviceStrategy.validation_step", False)
    after(32768, "run_training_epoch", False)
    now += 65536
    clock.teardown("fit")
    written = json.loads((tmp_path / "phases.json").read_text())
    seconds = {phase: written[phase] for phase in {OUTERMOST, *PHASES.values()}}
    assert seconds == {
        "training": 4 + 8 + 16,
        "pictures": 64 + 128 + 256,
        "checkpoints": 1024 + 2048 + 4096,
        "validation": 16384,
        "is_ode": 0,
        "loop": 1 + 2 + 32 + 512 + 8192 + 32768 + 65536,
    }
