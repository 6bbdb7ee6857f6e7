"""An optimiser that torch does not have in this form: Muon for convolutions' kernels, AdamW for all else."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# of the quintic a x + b x^3 + c x^5 (Jordan et al. 2024): steep at 0, so that small singular values grow fast
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, `[m, n]`, roughly.

    Singular values end between 0.6 and 1.3, or lower where they are far below the largest.
    Five Newton-Schulz iterations, x <- a x + (b x x^T + c (x x^T)^2) x, from x = matrix / |matrix|.
    """
    a, b, c = QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class MuonWithAdamW(Optimizer):
    """Muon for kernels `[O, I, kH, kW]`, seen as matrices `[O, I kH kW]`; AdamW for all other parameters.

    m <- mu m + (1 - mu) g;  w <- (1 - lr weight_decay) w - lr sqrt(max(1, rows / columns)) U V^T,
    where U S V^T = mu m + (1 - mu) g, mu the momentum: a step of the same size in all directions of the matrix, so that
    those with small gradients are learned as soon as the others. Jordan et al. 2024
    (https://kellerjordan.github.io/posts/muon/); AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101).

    `torch.optim.Muon` takes matrices alone, and computes in bfloat16. Not for networks without convolutions,
    and not for fine-tuning: its steps do not get smaller with the gradient, only with lr.

    Args:
        params: parameters, of which some must be kernels and some not.
        lr: rate of the kernels: the size of a step, beside weights of about 1 / sqrt(I kH kW).
        adamw_lr: rate of the others.
        momentum: the kernels' memory of gradients; schedules leave it alone.
        betas: the others' memory of gradients and of their squares.
        weight_decay: decoupled, for both.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.04,
        adamw_lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0001,
    ) -> None:
        params = list(params)
        if not all(isinstance(p, Tensor) for p in params):
            raise TypeError("MuonWithAdamW takes parameters, not groups or pairs of names and parameters")
        kernels = [p for p in params if p.ndim == 4]
        others = [p for p in params if p.ndim != 4]
        if not kernels or not others:
            raise ValueError("MuonWithAdamW is for networks with convolutions and other parameters: use AdamW")
        for name, value in (("lr", lr), ("adamw_lr", adamw_lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, and finite, not {value!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and less than 1, not {momentum!r}")
        self.adamw = AdamW(others, lr=adamw_lr, betas=betas, weight_decay=weight_decay, fused=True)
        # schedules find both rates here; one that swings betas expects them in every group
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__([self.adamw.param_groups[0], {"params": kernels, "momentum": momentum}], defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a third group: which of the two rules were it to follow?"""
        if len(self.param_groups) == 2:
            raise NotImplementedError("MuonWithAdamW takes all its parameters at the start")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy: torch copies groups and state alone."""
        super().__setstate__(state)
        if "adamw" not in self.__dict__:
            self.adamw = AdamW(self.param_groups[0]["params"], fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step; return the closure's loss, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.param_groups, self.adamw.state = self.param_groups[:1], self.state  # loading replaces them
        self.adamw.step()
        group = self.param_groups[1]
        for kernel in group["params"]:
            if kernel.grad is not None:
                self._step_kernel(kernel, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _step_kernel(self, kernel: Tensor, lr: float | Tensor, momentum: float, weight_decay: float) -> None:
        gradient = kernel.grad
        assert gradient is not None
        state = self.state[kernel]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(kernel)
        memory = state["momentum_buffer"]
        memory.lerp_(gradient, 1 - momentum)
        matrix = gradient.lerp(memory, momentum).flatten(1)
        size = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        direction = orthogonalize(matrix).view_as(kernel)
        kernel.mul_(1 - lr * weight_decay)
        if isinstance(lr, Tensor):  # within a recorded step: its value is not to be read here
            kernel.addcmul_(direction, lr, value=-size)
        else:
            kernel.add_(direction, alpha=-lr * size)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """An optimiser's rates by the names of their curves.

    `lr`, where all groups began with the same; else `lr/1`, `lr/2` and so on. Of `MuonWithAdamW`, `lr` is the kernels'
    and `lr/adamw` the others'.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if isinstance(optimizer, MuonWithAdamW):
        return {"lr": rates[1], "lr/adamw": rates[0]}
    initial = {group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}  # set by schedulers
    if len(initial) == 1:
        return {"lr": rates[0]}
    return {f"lr/{number}": rate for number, rate in enumerate(rates, 1)}
