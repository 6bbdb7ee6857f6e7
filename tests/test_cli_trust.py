"""A checkpoint runs and imports nothing that it is not trusted to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from odenet_lightning.checkpoints.trust import foreign_texts
from tests.helpers import fails

RUN = {"class_path": "torch.utils.collect_env.subprocess.run"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", {**RUN, "dict_kwargs": {"args": {"touch": 1, "ran": 1}}}),  # a list of a dict is its keys
        ("optimizer", {"class_path": "torch.distributed.run.main", "init_args": {"args": ["--no-python", "ran"]}}),
        ("optimizer", {"class_path": "torch.optim.AdamW", "dict_kwargs": {"lr": 0.1}}),
        ("optimizer", {"class_path": "torch.optim.adamw.cast", "init_args": {"lr": 0.1}}),
        ("optimizer", {"class_path": "torch.serialization.load", "init_args": {"f": "ran"}}),
        ("net", "bare"),
        ("net", {"class_path": "bare"}),
        ("net", {"class_path": "odenet_lightning.cli.app.os.system", "init_args": {"command": "ran"}}),
        ("net", {"class_path": "odenet_lightning.ODENet", "init_args": {"touch ran": 1}}),
        ("net", {"class_path": "odenet_lightning.ODENet", "init_args": {"channels": torch.zeros(1)}}),
    ],
)
def test_a_checkpoint_of_plain_data_runs_nothing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    """Whatever its settings name: not even functions of torch's own modules."""
    monkeypatch.syspath_prepend(str(workdir))
    Path("evil.py").write_text("open('ran', 'w').close()\n")
    Path("bare").write_text("class_path: evil.Net\n")
    settings = {"net": {"class_path": "odenet_lightning.ODENet"}, key: value}
    checkpoint = {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "hyper_parameters": settings}
    torch.save(checkpoint, "planted.ckpt")
    error = fails(["test", "--ckpt_path", "planted.ckpt", "--data.source", "sample"], capsys)
    assert "planted.ckpt names" in error
    assert not Path("ran").exists()


def test_settings_of_this_project_are_known() -> None:
    net = {
        "class_path": "odenet_lightning.models.PaperODENet",
        "init_args": {
            "channels": 8,
            "solver": {
                "class_path": "odenet_lightning.solvers.Dopri5",
                "init_args": {"rtol": 0.1, "first_step": "warm"},
            },
            "gradient": {"class_path": "odenet_lightning.gradients.Adjoint", "init_args": {"seminorm": True}},
            "field": {"class_path": "odenet_lightning.fields.ConvField", "init_args": {"channels": 8}},
        },
    }
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.99], "foreach": None}}
    augment = {"class_path": "odenet_lightning.augment.Deform", "init_args": {"degrees": 5.0}}
    head = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 4}}
    regularizer = {"class_path": "odenet_lightning.regularizers.Jacobian", "init_args": {"weight": 0.1}}
    model = {"net": net, "optimizer": optimizer, "regularizer": regularizer, "schedule": "one_cycle"}
    assert foreign_texts([model, augment, head], set()) == []
    own = {"net": {"class_path": "mine.Net", "init_args": {"width": 3}, "dict_kwargs": {"more": 1}}}
    assert foreign_texts(own, set()) == ["dict_kwargs", "mine.Net"]
    assert foreign_texts(own, {"mine.Net"}) == []


EVIL = "from pathlib import Path\n\nPath('ran').touch()\n\n\nclass A:\n    pass\n"


PARTS: list[tuple[str, Any]] = [
    ("net", {"class_path": "evil.A"}),
    ("optimizer", "evil.A"),
    ("augment", {"class_path": "evil.A"}),
    ("net", '{"class_path": "evil.A"}'),
    ("net", "evil.yaml"),
    ("net", "./evil.yaml"),
    ("net", {"class_path": "odenet_lightning.ODENet", "init_args": {"field": {"class_path": "evil.A"}}}),
    ("net", {"class_path": "torch.nn.Identity", "dict_kwargs": {"x": "evil.A"}}),
]


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        *(("last.ckpt", *part) for part in PARTS),
        # a file of the class's name, which the command line then names
        *((name, *part) for name in ("evil.A.ckpt", "evil.A") for part in PARTS[:3]),
    ],
)
def test_a_checkpoint_imports_nothing_foreign(
    name: str,
    part: str,
    value: Any,
    run: Path,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(workdir))
    (workdir / "evil.py").write_text(EVIL)
    (workdir / "evil.yaml").write_text("class_path: evil.A")
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["datamodule_hyper_parameters" if part == "augment" else "hyper_parameters"][part] = value
    torch.save(checkpoint, workdir / name)
    for args in (["test", "--ckpt_path", name], ["fit", f"--ckpt_path={name}"], ["fit", "--weights", name]):
        if part == "optimizer" and "--weights" in args:
            continue  # which leaves the optimiser out
        assert "importing that would run its code" in fails([*args, "--data.source", "sample"], capsys)
    assert not (workdir / "ran").exists()
