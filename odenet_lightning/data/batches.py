"""Batches from memory: an epoch's order, training's and evaluation's batches."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from odenet_lightning.data.digits import DataError, Digits


class EpochOrder(Sampler[int]):
    """A permutation of n images for each epoch, by a seed: the same on all processes and in a resumed run.

    Lightning names the epoch (`set_epoch`), as it does for torch's `DistributedSampler`.

    Args:
        count: n.
        seed: what the permutations are drawn by, together with the epoch.
        is_fixed: have all epochs take the first one's order.
    """

    def __init__(self, count: int, seed: int, is_fixed: bool = False) -> None:
        self.count, self.seed, self.is_fixed, self.epoch = count, seed, is_fixed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""
        self.epoch = epoch

    def permutation(self) -> Tensor:
        """The epoch's order, `[n]`."""
        generator = torch.Generator().manual_seed(
            (self.seed + 1_000_003 * (0 if self.is_fixed else self.epoch)) % 2**63
        )
        return torch.randperm(self.count, generator=generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.permutation().tolist())


class TrainingBatches:
    """An epoch's batches, each one gather from memory; the last, incomplete one is left out.

    Batch k of N processes is the k-th piece of N * batch_size images of the epoch's order, cut in N: so
    the processes together see what one alone with N times the batch size does. Goes on in the middle of
    an epoch, where it is told to.

    Args:
        digits: all training images, on the device where they are wanted.
        batch_size: images per process.
        sampler: the order.
        rank: number of this process, of `processes`.
    """

    def __init__(self, digits: Digits, batch_size: int, sampler: EpochOrder, rank: int = 0, processes: int = 1) -> None:
        self.digits, self.batch_size, self.sampler = digits, batch_size, sampler
        self.rank, self.processes = rank, processes
        self.epoch = self.position = 0
        self.resumed = False

    def state_dict(self) -> dict[str, int]:
        """The place: the epoch, and how many of its batches were taken. Lightning keeps it in every checkpoint."""
        return {"epoch": self.epoch, "position": self.position, "images": self.batch_size * self.processes}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Have the next pass go on from there, if it is of that epoch.

        Raises:
            DataError: in the middle of an epoch that was cut into other batches.
        """
        images = self.batch_size * self.processes
        if images != state_dict["images"] and 0 < state_dict["position"] < len(self.digits) // state_dict["images"]:
            raise DataError(
                f"the checkpoint is within an epoch of {state_dict['images']} images per step, this run takes "
                f"{images}; resume with the same batch_size x processes, or from a checkpoint at an epoch's end"
            )
        self.epoch, self.position, self.resumed = state_dict["epoch"], state_dict["position"], True

    def __len__(self) -> int:
        return len(self.digits) // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # runs at the first batch: by then Lightning has named the epoch
        goes_on = self.resumed and self.epoch == self.sampler.epoch
        self.resumed, self.epoch = False, self.sampler.epoch
        order = self.sampler.permutation().to(self.digits.labels.device)
        for step in range(self.position if goes_on else 0, len(self)):
            self.position = step + 1
            start = (step * self.processes + self.rank) * self.batch_size
            batch = self.digits[order[start : start + self.batch_size]]
            yield batch.images, batch.labels


class EvaluationBatches:
    """A process's share of the images, in order, each exactly once over all processes.

    Args:
        digits: all images, on the device where they are wanted.
        batch_size: images per batch; the last one may be smaller.
        rank: number of this process, of `processes`.
    """

    def __init__(self, digits: Digits, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        share = torch.arange(len(digits)).tensor_split(processes)[rank]
        self.digits, self.batch_size = digits[share.to(digits.labels.device)], batch_size

    def __len__(self) -> int:
        return -(-len(self.digits) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.digits), self.batch_size):
            piece = slice(start, start + self.batch_size)
            yield self.digits.images[piece], self.digits.labels[piece]
