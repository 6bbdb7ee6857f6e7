"""ImageCosts: what each image of a batch has cost in a solve in which it has its own steps."""

import torch
from torch import Tensor

from odenet_lightning.solvers.problem import ImageStats, SolveStats


class ImageCosts:
    """Evaluations and step sizes of every image of a batch, on the host.

    Args:
        count: images in the batch.
        stages: evaluations of an attempted step.

    Attributes:
        begun: evaluations before the first step.
        attempts: steps tried so far; an image not yet at the end takes part in all of them.
    """

    def __init__(self, count: int, stages: int) -> None:
        self.stages = stages
        self.begun = self.attempts = 0
        self.evaluations, self.accepted = torch.zeros(2, count, dtype=torch.long)
        self.smallest, self.last, self.next = torch.full((3, count), torch.inf, dtype=torch.float64)

    def spent(self, attempts: int) -> int:
        """Evaluations of an image after this many attempted steps."""
        return self.begun + attempts * self.stages

    def add(self, images: Tensor, sizes: tuple[Tensor, Tensor], accepted: Tensor, arrived: Tensor) -> None:
        """Count an attempted step.

        Args:
            images: whose step it was; the other tensors have an entry for each of these.
            sizes: of this step and of the next one.
            accepted: a mask of the images whose step was accepted.
            arrived: a mask of those that are now at the end.
        """
        h, grown = (size[accepted] for size in sizes)
        whose = images[accepted]
        self.smallest[whose] = torch.minimum(self.smallest[whose], h)
        self.last[whose] = h
        new = self.next[whose].isinf()
        self.next[whose[new]] = grown[new]
        self.accepted[whose] += 1
        self.evaluations[images[arrived]] = self.spent(self.attempts)

    def stats(self) -> SolveStats:
        """The cost of each image, and their mean."""
        rejected = (self.evaluations - self.begun) // self.stages - self.accepted
        each = ImageStats(self.evaluations, self.accepted, rejected)
        evaluations, accepted, mean_rejected = (float(x.double().mean()) for x in vars(each).values())
        return SolveStats(
            evaluations,
            accepted,
            mean_rejected,
            smallest_step=float(self.smallest.min()),
            last_step=float(self.last.mean()),
            next_step=float(self.next.median()),
            images=each,
        )
