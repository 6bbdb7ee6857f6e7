"""Networks taken elsewhere: traced by torch.export and torch.compile, and written by the command `export`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from odenet_lightning import ODENet, PaperODENet
from odenet_lightning.certificate import solved_by
from odenet_lightning.cli import main
from odenet_lightning.data import load_sample
from odenet_lightning.exporting import FORMATS, ExportError, FromPixels, compare, fixed_instead, formats, traced
from odenet_lightning.exporting.fixed import STEPS, predicted
from odenet_lightning.models import AugmentedODENet, PyramidODENet
from odenet_lightning.solvers import RK4, Dopri5, Euler, Heun, Midpoint, TorchDiffEq
from tests.helpers import fails

NETS = {
    "post": lambda: ODENet(solver=Midpoint(num_steps=3)),
    "dopri5 in fixed steps": lambda: ODENet(solver=Dopri5(num_steps=1)),
    "time": lambda: PaperODENet(channels=8, solver=Heun(num_steps=2)),
    "two blocks": lambda: PyramidODENet(solver=RK4(num_steps=1)),
    "augmented": lambda: AugmentedODENet(solver=Euler(step_size=0.5)),
}

QUICK = ("post", "two blocks")


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 28, 28), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, make in NETS.items()],
)
def test_plain_module_is_traced_with_its_steps_unrolled(make: Any) -> None:
    torch.manual_seed(0)
    net = make().eval()
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 2, 7):
        images = torch.rand(count, 1, 28, 28) * 2 - 1
        torch.testing.assert_close(program.module()(images), net(images), rtol=1e-5, atol=1e-5)
    longer = make().eval()
    for block in longer.ode_blocks:
        block.solver = Midpoint(num_steps=20)
    convolutions = [
        sum(node.target is torch.ops.aten.conv2d.default for node in graph.nodes)
        for graph in (program.graph, torch.export.export(longer, (images,)).graph)
    ]
    assert convolutions[1] > convolutions[0] > len(net.ode_blocks)


def test_plain_module_is_compiled() -> None:
    """By the tracer alone: the compiler behind it takes a minute."""
    torch.manual_seed(0)
    net = ODENet(channels=3, solver=Midpoint(num_steps=2))
    images = torch.rand(4, 1, 28, 28) * 2 - 1
    expected = net(images)
    expected.square().sum().backward()
    grads = [p.grad for p in net.parameters()]
    net.zero_grad()
    torch._dynamo.reset()
    made = torch.compile(net, backend="aot_eager")(images)
    made.square().sum().backward()
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close([p.grad for p in net.parameters()], grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_file_gives_the_networks_numbers_for_any_batch(ending: str) -> None:
    if ending == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    torch.manual_seed(0)
    net = ODENet(solver=Midpoint(num_steps=2)).eval()
    make, again = FORMATS[ending]
    content = make(traced(net, (1, 28, 28)), {"classes": "[]"})
    assert str(Path(__file__).parents[1]).encode() not in content, "names a folder of this machine"
    run = again(content)
    for count in (1, 3):
        images = pixels(count)
        with torch.no_grad():
            torch.testing.assert_close(run(images), FromPixels(net)(images), rtol=0, atol=1e-5)
    assert compare(net, run, pixels(300)).difference < 1e-5


def test_other_numbers_are_refused() -> None:
    net = ODENet(channels=2, solver=Midpoint(num_steps=1)).eval()
    for wrong in (1.0001, -1.0):
        with pytest.raises(ExportError, match="does not give the network's numbers"):
            compare(net, lambda images, wrong=wrong: FromPixels(net)(images) * wrong, pixels(4))


@pytest.mark.parametrize("solver", [Dopri5(1e-3, 1e-3), TorchDiffEq("dopri5", 1e-3, 1e-3)])
def test_the_fixed_solver_is_the_cheapest_that_changes_next_to_nothing(solver: Any, sample_root: Path) -> None:
    digits = load_sample(sample_root)[torch.arange(0, 5000, 50)]
    torch.manual_seed(0)
    net = ODENet(channels=2, solver=solver).eval()
    found = fixed_instead(net, digits.images, digits.labels)
    assert net.block.solver == solver
    own = predicted(net, digits.images)
    changed = {}
    for steps in STEPS:
        with solved_by(net, RK4(num_steps=steps)):
            changed[steps] = int((predicted(net, digits.images) != own).sum())
    cheapest = next(steps for steps in STEPS if changed[steps] <= 1)
    assert cheapest > 1, "one step is as good: these dynamics test nothing"
    assert (found.solver, found.changed, found.images) == (RK4(num_steps=cheapest), changed[cheapest], 100)


def test_command_writes_what_it_has_checked(
    workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--ckpt_path", "default", "--root", str(sample_root)]
    main(["export", *at, "--source", "sample", "--path", "deep/net.pt2"])
    told = capsys.readouterr().out
    assert "checked   on 500 test images of sample: the same predictions" in told
    extra = {"notes.json": ""}
    module = torch.export.load("deep/net.pt2", extra_files=extra).module()
    notes = json.loads(extra["notes.json"])
    assert json.loads(notes["classes"])[3] == "3"
    assert notes["solver"] == "Midpoint(num_steps=5)"
    digits = load_sample(sample_root)
    assert (module(digits.images[:300]).argmax(1) == digits.labels[:300]).float().mean() > 0.95


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--path", "net.bin"], "name a file that ends in .onnx, .pt2 or .ckpt"),
        (["--solver", "Dopri5"], "give --solver RK4 --solver.num_steps 1, which changes 1 of 500 predictions, and the"),
        (["--solver", "Midpoint"], "give num_steps or step_size"),
        (["--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
    ],
)
def test_what_cannot_be_written_is_refused(
    flags: list[str], said: str, workdir: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--ckpt_path", "default", "--root", str(sample_root), "--source", "sample"]
    assert said in fails(["export", *at, *flags], capsys)
    assert not list(workdir.iterdir())


def test_a_checkpoint_is_not_written_over_itself(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "--ckpt_path", "default", "--path", "last.ckpt"])
    before = Path("last.ckpt").read_bytes()
    Path("link.ckpt").symlink_to("last.ckpt")
    for path in ("last.ckpt", str(workdir / "link.ckpt")):
        assert "is the checkpoint itself" in fails(["export", "--ckpt_path", "last.ckpt", "--path", path], capsys)
    assert Path("last.ckpt").read_bytes() == before


def test_onnx_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"ONNX needs onnx, onnxscript, onnxruntime: pip install"):
        formats.as_onnx(traced(ODENet(channels=2, solver=Euler(num_steps=1)).eval(), (1, 28, 28)), {})
