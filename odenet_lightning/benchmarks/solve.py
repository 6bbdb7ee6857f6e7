"""python -m odenet_lightning.benchmarks.solve: what a training step costs, against torchdiffeq and torchode.

Every row times two kinds of training step in turn, A B A B ..., on the same weights and the same batch, and
prints the medians and the median of the ratios: machines drift, ratios of neighbours do not. torchode
is measured where it is installed (`pip install -e '.[bench]'`).
"""

import argparse
import importlib
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torchdiffeq
from torch import Tensor
from torch.nn import functional as F

from odenet_lightning.gradients import Backprop, Checkpoint, Gradient
from odenet_lightning.models import ODENet
from odenet_lightning.solvers import Dopri5, Solver

TrainingStep = Callable[[], None]


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Made-up images in [-1, 1] and labels: the cost does not depend on what is seen."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 1, 28, 28, generator=generator) * 2 - 1
    return images, torch.randint(10, (size,), generator=generator)


def make_net(solver: Solver | None = None, gradient: Gradient | None = None) -> ODENet:
    """The post's network, always with the same weights."""
    torch.manual_seed(0)
    return ODENet(solver=solver, gradient=gradient)


def training_step(net: ODENet, size: int, block: Callable[[Tensor], Tensor] | None = None) -> TrainingStep:
    """A step of SGD, the ODE block's output by `block` where given."""
    images, labels = make_batch(size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        y = net.stem(images)
        logits = net.head((block or net.block)(y))
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def by_torchdiffeq(size: int, tolerance: float, adjoint: bool) -> TrainingStep:
    """The post's step: dopri5 by torchdiffeq, gradients by its adjoint or by backpropagation."""
    net = make_net()
    times = torch.tensor([0.0, 1.0])
    solve = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def block(y: Tensor) -> Tensor:
        states = solve(net.block.field, y, times, rtol=tolerance, atol=tolerance)
        assert isinstance(states, Tensor)
        return states[1]

    return training_step(net, size, block)


def by_torchode(size: int, tolerance: float) -> TrainingStep:
    """Dopri5 by torchode, whose steps are controlled image by image, and backpropagation."""
    torchode: Any = importlib.import_module("torchode")  # an extra, with types of its own making

    net = make_net()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return net.block.field(t, y.view(-1, 6, 26, 26)).flatten(1)

    term = torchode.ODETerm(field)
    controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)

    def block(y: Tensor) -> Tensor:
        problem = torchode.InitialValueProblem(
            y0=y.flatten(1), t_start=torch.zeros(len(y)), t_end=torch.ones(len(y)), t_eval=None
        )
        return solver.solve(problem).ys[:, -1].view_as(y)

    return training_step(net, size, block)


def ours(
    size: int,
    tolerance: float,
    gradient: Gradient | None = None,
    compile: bool = False,
    first_step: Literal["warm", "heuristic"] = "warm",
) -> TrainingStep:
    """Our step: the project's own Dopri5 with the first step carried along."""
    net = make_net(Dopri5(tolerance, tolerance, first_step=first_step), gradient)
    if compile:
        net.block.compile_solve()
    return training_step(net, size)


def parts(size: int, tolerance: float) -> TrainingStep:
    """What a step cannot do without: its evaluations of the field, each forward and back, stem and head."""
    net = make_net(Dopri5(tolerance, tolerance, first_step="warm"))
    warm = training_step(net, size)
    for _ in range(4):
        warm()
    evaluations = net.block.solves[-1].forward.evaluations
    images, _ = make_batch(size)
    state = net.stem(images).detach().requires_grad_()
    cotangent, zero = torch.ones_like(state), torch.zeros(())
    rest = training_step(net, size, lambda y: y)

    def step() -> None:
        rest()
        for _ in range(evaluations):
            torch.autograd.grad(net.block.field(zero, state), (state, *net.block.field.parameters()), cotangent)

    return step


def compare(name: str, a: TrainingStep, b: TrainingStep, repeats: int) -> None:
    """Time two steps in turn and print a row: medians in ms, and the median ratio a / b with its quartiles."""
    for _ in range(4):  # warm up: allocator, caches, warm steps, compilers
        a()
        b()
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        a()
        middle = time.perf_counter()
        b()
        seconds.append((middle - begin, time.perf_counter() - middle))
    ratios = [x / y for x, y in seconds]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    medians = [statistics.median(pair[i] for pair in seconds) * 1e3 for i in (0, 1)]
    print(f"{name:<72} {medians[0]:8.1f} {medians[1]:8.1f}   {ratio:.3f} ({low:.3f} to {high:.3f})", flush=True)


def bytes_for_backward(gradient: Gradient, size: int = 16, tolerance: float = 1e-5) -> int:
    """Bytes that a solve keeps until the way back, parameters not counted."""
    net = make_net(Dopri5(tolerance, tolerance), gradient)
    images, _ = make_batch(size)
    state = net.stem(images).detach().requires_grad_()
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in net.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = net.block(state)  # alive until the count is done, so that no storage is counted twice or missed
    total = sum(kept.values())
    del held
    return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31, help="pairs of steps a row (default 31)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--compile", action="store_true", help="time the compiled step too (minutes)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {platform.machine()}, n = {args.repeats} pairs a row")
    print(f"{'a training step: A against B':<72} {'A, ms':>8} {'B, ms':>8}   A / B (quartiles)")
    for size in (16, 128):
        name = f"batch {size}, 1e-1: ours against odeint_adjoint"
        compare(name, ours(size, 1e-1), by_torchdiffeq(size, 1e-1, adjoint=True), args.repeats)
    for size in (16, 128):
        name = f"batch {size}, 1e-3: ours against odeint and backpropagation"
        compare(name, ours(size, 1e-3), by_torchdiffeq(size, 1e-3, adjoint=False), args.repeats)
    if importlib.util.find_spec("torchode"):
        name = "batch 16, 1e-3: ours against torchode Dopri5 and backpropagation"
        compare(name, ours(16, 1e-3), by_torchode(16, 1e-3), args.repeats)
    for size in (16, 128):
        name = f"batch {size}, 1e-1: ours against its field, stem and head alone"
        compare(name, ours(size, 1e-1), parts(size, 1e-1), args.repeats)
    for size in (16, 128):
        name = f"batch {size}, 1e-1: Checkpoint against Backprop"
        compare(name, ours(size, 1e-1, Checkpoint()), ours(size, 1e-1, Backprop()), args.repeats)
        if args.compile:
            name = f"batch {size}, 1e-1: compiled against eager"
            compare(name, ours(size, 1e-1, compile=True), ours(size, 1e-1), args.repeats)
    print("what each change gains, batch 16, 1e-1:")
    own = ours(16, 1e-1, first_step="heuristic")
    library = by_torchdiffeq(16, 1e-1, adjoint=False)
    compare("  backpropagation instead of the adjoint", library, by_torchdiffeq(16, 1e-1, adjoint=True), args.repeats)
    compare("  stages in a list, steps as floats", own, library, args.repeats)
    compare("  the first step carried along", ours(16, 1e-1), own, args.repeats)
    held = {type(g).__name__: bytes_for_backward(g) for g in (Backprop(), Checkpoint())}
    ratio = held["Checkpoint"] / held["Backprop"]
    print(f"bytes for backward, Dopri5 at 1e-5, batch 16: {held}, Checkpoint / Backprop = {ratio:.3f}")


if __name__ == "__main__":
    main()
