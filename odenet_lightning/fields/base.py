"""Field: the base class of all vector fields."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Field(nn.Module, ABC):
    """A vector field, dy/dt = f(t, y).

    Subclass it, implement `forward`, and name the class in a config (`model.net.init_args.field`).
    Do not count, log or cache in a field: solvers call it a varying number of times, and gradient
    methods call it again in the backward pass.
    """

    @abstractmethod
    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Evaluate the field.

        Args:
            t: time, a scalar tensor; of each image, `[B, 1, 1, 1]`, where a solver solves each by itself.
            y: state, any shape; a batch of images is `[B, C, H, W]`.

        Returns:
            dy/dt, with the shape of `y`.
        """
