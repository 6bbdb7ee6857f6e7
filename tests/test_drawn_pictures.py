"""Pictures drawn after validation."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odenet_lightning import ClassifierModule, ODENet, ResNet
from odenet_lightning.callbacks import (
    EvaluationCounts,
    Pictures,
)
from odenet_lightning.solvers import RK4
from tests.training import FewDigits, sgd, trainer_in


def test_pictures_show_what_was_wrong(tmp_path: Path) -> None:
    """With weights that always answer 3, every other digit is a mistake."""
    module = ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), sgd(1e-9), schedule="constant")
    with torch.no_grad():
        module.net.get_submodule("head.fc").weight.zero_()  # type: ignore[union-attr, operator]
        module.net.get_submodule("head.fc").bias.copy_(torch.eye(10)[3])  # type: ignore[union-attr, operator]
    pictures = Pictures()
    data = FewDigits(size=20)
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[pictures])
    trainer.fit(module, data)
    labels = torch.cat([labels for _, labels in data.batches[:2]])
    assert pictures.confusion is not None
    assert pictures.confusion.confmat[:, 3].sum() == 40
    assert [(true, said) for _, true, said in pictures.mistakes] == [(int(label), 3) for label in labels if label != 3][
        :32
    ]
    assert pictures.example is not None


@pytest.mark.parametrize(
    ("every", "limit", "drawn"),
    [
        *((0, {"max_epochs": 3}, []), (1, {"max_epochs": 3}, [3, 7, 11])),
        *((2, {"max_epochs": 3}, [7, 11]), (4, {"max_epochs": 3}, [11]), (4, {"max_steps": 8}, [7])),
    ],
)
def test_pictures_are_drawn_as_often_as_asked(
    tmp_path: Path, every: int, limit: dict[str, int], drawn: list[int]
) -> None:

    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        **limit,  # pyright: ignore[reportArgumentType]
        logger=logger,
        callbacks=[Pictures(every)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=4,
    )
    trainer.fit(ClassifierModule(ODENet(2, solver=RK4(num_steps=1)), schedule="constant"), FewDigits())
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert [event.step for event in events.Images("val/feature_maps")] == drawn if drawn else not tags


def test_pictures_of_a_network_without_odes(tmp_path: Path) -> None:
    pictures = Pictures()
    trainer = trainer_in(tmp_path, max_epochs=1, callbacks=[pictures, EvaluationCounts()])
    trainer.fit(ClassifierModule(ResNet(2, 1)), FewDigits())
    assert "nfe/forward" not in trainer.callback_metrics


def test_pictures_refuse_a_negative_rhythm() -> None:
    with pytest.raises(ValueError, match="every_n_epochs"):
        Pictures(-1)
