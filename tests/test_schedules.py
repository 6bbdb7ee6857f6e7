"""Schedules of the learning rate, and Trainer settings that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateFinder, StochasticWeightAveraging

from odenet_lightning import ClassifierModule, ResNet
from odenet_lightning.callbacks import Resume
from odenet_lightning.cli import main
from tests.training import FewDigits, sgd, trainer_in


def test_one_cycle_spans_the_run(tmp_path: Path) -> None:
    rates: list[float] = []
    module = ClassifierModule(ResNet(2, 1), sgd(0.5))
    module.on_train_batch_start = lambda *_: rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])  # type: ignore
    trainer_in(tmp_path, max_epochs=5).fit(module, FewDigits())
    assert len(rates) == 20
    assert max(rates) == pytest.approx(0.5, rel=1e-3)
    assert rates.index(max(rates)) in (5, 6)
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.Adagrad(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)],
    ids=["adagrad", "sgd"],
)
def test_one_cycle_gives_no_momentum_to_those_without(tmp_path: Path, optimizer: Any) -> None:
    trainer = trainer_in(tmp_path, max_epochs=1)
    trainer.fit(ClassifierModule(ResNet(2, 1), optimizer), FewDigits())
    assert trainer.optimizers[0].param_groups[0].get("momentum", 0) == 0
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.05, "the rate was scheduled all the same"


def test_cosine_ends_at_zero(tmp_path: Path) -> None:
    module = ClassifierModule(ResNet(2, 1), sgd(0.5), schedule="cosine")
    trainer = trainer_in(tmp_path, max_epochs=2)
    trainer.fit(module, FewDigits())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_schedule_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the run's length in steps.*max_time.*--model\.schedule constant"):
        trainer_in(tmp_path, max_epochs=-1, max_time="00:00:00:10").fit(ClassifierModule(), FewDigits())


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule"):
        ClassifierModule(schedule="linear")  # type: ignore[arg-type]


def test_resuming_past_the_schedule_is_refused(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_epochs=1)
    trainer.fit(ClassifierModule(ResNet(2, 1)), FewDigits())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=r"ends after 4 steps, but this run is to take 8"):
        trainer_in(tmp_path, max_epochs=2, callbacks=[Resume()]).fit(
            ClassifierModule(ResNet(2, 1)), FewDigits(), ckpt_path=tmp_path / "one.ckpt"
        )


def test_the_learning_rate_finder_is_refused(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[LearningRateFinder()])
    with pytest.raises(ValueError, match=r"LearningRateFinder .* compare a few --model\.optimizer\.lr"):
        trainer.fit(ClassifierModule(ResNet(2, 1)), FewDigits())


def test_an_average_that_no_checkpoint_keeps_is_refused(tmp_path: Path) -> None:
    """Nor would a resumed run start it when an undisturbed one does."""
    trainer = trainer_in(tmp_path, max_epochs=2, callbacks=[StochasticWeightAveraging(0.1)])
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging leaves its weights in no .*EMAWeightAveraging"):
        trainer.fit(ClassifierModule(ResNet(2, 1)), FewDigits())


def test_an_average_that_starts_later_is_told(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[EMAWeightAveraging(update_starting_at_step=3)])
    with pytest.warns(UserWarning, match="from step 3 on; validation until then measures the untrained weights"):
        trainer.fit(ClassifierModule(ResNet(2, 1)), FewDigits())


def test_strategies_that_spawn_are_refused(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "ddp_spawn"]
    with pytest.raises(SystemExit):
        main(["fit", "--data.source", "sample", "--data.root", str(sample_root), *args])
    assert "use --trainer.strategy ddp" in capsys.readouterr().err
