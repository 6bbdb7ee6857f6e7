"""The post's network and its training step in JAX, its ODE solved by diffrax: what else a person might take."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from odenet_lightning.models import ODENet

EPS = 1e-5


def jitted_step(net: ODENet, images: Tensor, labels: Tensor, tolerance: float) -> Callable[[], dict[str, Any]]:
    """A jitted step of SGD with momentum on the same weights and digits, dopri5 at a tolerance.

    Backpropagation runs through the steps, kept by diffrax's own checkpoints. The step returns the parameters.
    """
    jax: Any = importlib.import_module("jax")  # extras, of which no type is known here
    diffrax: Any = importlib.import_module("diffrax")
    jnp, lax = jax.numpy, jax.lax
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in net.named_parameters()}
    pixels, targets = jnp.asarray(images.numpy()), jnp.asarray(labels.numpy())

    def norm(x: Any, p: Any, name: str) -> Any:
        centred = x - x.mean((2, 3), keepdims=True)
        scaled = centred * lax.rsqrt((centred**2).mean((2, 3), keepdims=True) + EPS)
        return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    def conv(x: Any, p: Any, name: str, padding: str) -> Any:
        y = lax.conv_general_dilated(
            x, p[f"{name}.weight"], (1, 1), padding, dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        return y + p[f"{name}.bias"][:, None, None]

    def field(t: Any, y: Any, p: Any) -> Any:
        del t
        z = jax.nn.relu(norm(y, p, "block.field.norm"))
        return norm(conv(z, p, "block.field.conv", "SAME"), p, "block.field.norm")

    def loss(p: Any) -> Any:
        y = jax.nn.relu(norm(conv(pixels, p, "stem.conv", "VALID"), p, "stem.norm"))
        control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        y = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, 1.0, None, y, p, stepsize_controller=control, max_steps=64
        ).ys[-1]
        pooled = lax.reduce_window(y, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4
        logits = pooled.reshape(len(y), -1) @ p["head.fc.weight"].T + p["head.fc.bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1).mean()

    def update(p: Any, momentum: Any) -> Any:
        grads = jax.grad(loss)(p)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        return jax.tree.map(lambda x, m: x - 0.001 * m, p, momentum), momentum

    compiled, state = jax.jit(update), [params, jax.tree.map(jnp.zeros_like, params)]

    def step() -> dict[str, Any]:
        state[:] = compiled(*state)
        jax.block_until_ready(state)
        return state[0]

    return step
