import copy
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from odenet_lightning import ODENet
from odenet_lightning.optimizers import MuonWithAdamW, learning_rates, orthogonalize
from odenet_lightning.solvers import Midpoint


def gradients(net: nn.Module, seed: int) -> None:
    """Give every parameter a made-up gradient."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ODENet(solver=Midpoint(num_steps=1))


@given(st.integers(1, 8), st.integers(1, 60), st.integers(0, 99), st.sampled_from([1e-3, 1, 1e3]))
def test_singular_values_become_about_one_and_vectors_stay(rows: int, columns: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # singular values between 1 and 0.3: the iterations are not enough for much smaller ones
    k = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, k, generator=generator, dtype=torch.float64))
    values = torch.linspace(1, 0.3, k, dtype=torch.float64)
    found = u.T @ orthogonalize(size * u * values @ v.T) @ v
    diagonal = found.diagonal()
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    torch.testing.assert_close(found, torch.diag(diagonal), atol=1e-4, rtol=0)


def test_no_gradient_is_no_step() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_what_is_no_kernel_is_trained_by_adamw() -> None:
    ours, theirs = make_net(), make_net()
    optimizer = MuonWithAdamW(ours.parameters(), adamw_lr=0.02, betas=(0.8, 0.95), weight_decay=0.1)
    others = [p for p in theirs.parameters() if p.ndim != 4]
    reference = AdamW(others, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1, fused=True)
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q) == (p.ndim != 4)


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (6, 1, 1, 1)], ids=["wide", "tall"])
def test_kernels_follow_the_equation(shape: tuple[int, ...]) -> None:
    kernel, bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(2))
    lr, beta, decay = 0.1, 0.7, 0.5
    optimizer = MuonWithAdamW([kernel, bias], lr=lr, momentum=beta, weight_decay=decay)
    expected, memory = kernel.detach().clone(), torch.zeros(shape)
    rows, columns = shape[0], shape[1] * shape[2] * shape[3]
    for seed in range(3):
        kernel.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        memory = beta * memory + (1 - beta) * kernel.grad
        direction = orthogonalize((beta * memory + (1 - beta) * kernel.grad).reshape(rows, columns)).reshape(shape)
        expected = (1 - lr * decay) * expected - lr * max(1, rows / columns) ** 0.5 * direction
        optimizer.step()
    torch.testing.assert_close(kernel.detach(), expected)


def test_goes_on_from_its_state_as_if_nothing_had_been() -> None:
    def run(net: nn.Module, optimizer: MuonWithAdamW, seeds: range) -> None:
        for seed in seeds:
            gradients(net, seed)
            optimizer.step()

    whole, first = make_net(), make_net()
    run(whole, MuonWithAdamW(whole.parameters()), range(4))
    before = MuonWithAdamW(first.parameters())
    run(first, before, range(2))
    resumed = make_net(1)
    resumed.load_state_dict(first.state_dict())
    after = MuonWithAdamW(resumed.parameters(), lr=1.0)
    after.load_state_dict(before.state_dict())
    run(resumed, after, range(2, 4))
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_one_cycle_moves_both_rates_and_adamws_beta() -> None:
    optimizer = MuonWithAdamW(make_net().parameters(), lr=0.06, adamw_lr=0.02)
    scheduler = OneCycleLR(optimizer, [0.02, 0.06], total_steps=10, pct_start=0.5)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.06])
    assert optimizer.adamw.param_groups[0]["betas"][0] == pytest.approx(0.85)
    assert optimizer.param_groups[1]["momentum"] == 0.95


def test_learns_by_closure() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
    optimizer = MuonWithAdamW(net.parameters(), lr=0.02)
    x = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    target = x[:, 0, 0, :1]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(40)]
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.Conv2d(1, 1, 1, bias=False)])
def test_networks_without_both_kinds_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="use AdamW"):
        MuonWithAdamW(net.parameters())


def test_a_copy_steps_like_the_original() -> None:
    net = make_net()
    optimizer = MuonWithAdamW(net.parameters())
    gradients(net, 0)
    optimizer.step()
    twin, copied = copy.deepcopy((net, optimizer))
    for each, stepper in ((net, optimizer), (twin, copied)):
        gradients(each, 1)
        stepper.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_what_would_be_left_out_is_refused() -> None:
    net = make_net()
    with pytest.raises(TypeError, match="not groups"):
        MuonWithAdamW([{"params": list(net.parameters())}])  # type: ignore[list-item]
    with pytest.raises(NotImplementedError, match="at the start"):
        MuonWithAdamW(net.parameters()).add_param_group({"params": [nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"adamw_lr": -1.0}, {"weight_decay": inf}], ids=str)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MuonWithAdamW(make_net().parameters(), **wrong)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (lambda p: MuonWithAdamW(p, lr=0.06, adamw_lr=0.02), {"lr": 0.06, "lr/adamw": 0.02}),
        (lambda p: SGD(p, lr=0.1), {"lr": 0.1}),
        (lambda p: SGD([{"params": [q]} for q in p], lr=0.1), {"lr": 0.1}),
        (
            lambda p: SGD([{"params": [q], "lr": q.ndim / 10} for q in p], lr=0.1),
            {"lr/1": 0.4, "lr/2": 0.2, "lr/3": 0.1},
        ),
    ],
    ids=["muon", "one", "equal", "different"],
)
def test_every_rate_has_its_curve(optimizer: Any, expected: dict[str, float]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Linear(2, 2))
    made = optimizer(net.parameters())
    assert learning_rates(made) == expected
    CosineAnnealingLR(made, 2, eta_min=0.01)
    for group in made.param_groups:
        group["lr"] = 0.01  # where a schedule ends, rates may meet
    assert learning_rates(made).keys() == expected.keys()
