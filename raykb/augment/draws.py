"""From chance to pixels: what each image of a batch undergoes, and doing it.

A policy turns random numbers into :class:`Draws`, on the CPU; :func:`apply_draws` turns images
into augmented images, wherever they are. Between the two nothing is left to chance, so a sample's
augmentation depends on neither the batch nor the device it is in::

    uniforms  (N, policy.draws)     one row of numbers per image, keyed by its id
       │ policy.draw
    Draws     (N, depth)            per image and turn: which operation, how strong, where
       │ apply_draws
    images    (N, C, H, W) uint8    per turn sorted by operation: one kernel call for each
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raykb.data.operations import NAMES, apply_operation

NOTHING = -1  # the operation of a turn in which nothing fires


@dataclass(frozen=True, eq=False)
class Draws:
    """What N images undergo, turn after turn, with all chance resolved; on the CPU.

    Attributes:
        operation: (N, depth) int64, place in ``NAMES``, or ``NOTHING``.
        magnitude: (N, depth) float64, in the operation's own unit, sign included.
        centre: (N, depth, 2) float64 in [0, 1), x and y as fractions of width and height.
        sub_policy: (N,) int64, which sub-policy of its policy it was.
    """

    operation: Tensor
    magnitude: Tensor
    centre: Tensor
    sub_policy: Tensor

    def __len__(self) -> int:
        return len(self.operation)

    def __getitem__(self, rows: slice | Tensor) -> "Draws":
        """Return the draws of some of the images."""
        return Draws(
            self.operation[rows], self.magnitude[rows], self.centre[rows], self.sub_policy[rows]
        )

    @property
    def fired(self) -> Tensor:
        """(N,) int64, how many operations each image undergoes."""
        return (self.operation != NOTHING).sum(1)

    @staticmethod
    def concatenate(parts: Sequence["Draws"]) -> "Draws":
        """Return the rows of all ``parts``, the shallow ones filled up with turns of nothing."""
        depth = max(part.operation.shape[1] for part in parts)

        def join(values: Sequence[Tensor], fill: float) -> Tensor:
            turns = [
                [
                    value,
                    value.new_full((len(value), depth - value.shape[1], *value.shape[2:]), fill),
                ]
                for value in values
            ]
            return torch.cat([torch.cat(pair, dim=1) for pair in turns])

        return Draws(
            join([part.operation for part in parts], NOTHING),
            join([part.magnitude for part in parts], 0.0),
            join([part.centre for part in parts], 0.0),
            torch.cat([part.sub_policy for part in parts]),
        )


def apply_draws(images: Tensor, draws: Draws) -> Tensor:
    """Return the images after what ``draws`` says of each; the input stays as it is.

    In each turn the images are sorted by operation over all sub-policies, and over all policies
    where the draws of several were concatenated, so that every operation runs once.

    Args:
        images: uint8 (N, C, H, W), on any device.
        draws: of N images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(draws):
        raise ValueError(
            f"images: {images.dtype} {tuple(images.shape)}; "
            f"allowed: torch.uint8 ({len(draws)}, C, H, W), one image for each row of draws"
        )
    centre = draws.centre * torch.tensor([images.shape[3], images.shape[2]])  # in pixels
    place = torch.arange(len(images))  # where each image lies in ``images``, turn after turn
    for turn, operation in enumerate(draws.operation.unbind(1)):
        counts = torch.bincount(operation - NOTHING, minlength=len(NAMES) + 1).tolist()
        order = operation.argsort(stable=True)
        groups = images.index_select(0, place[order].to(images.device)).split(counts)
        done = [groups[0]]  # those of NOTHING come first
        for name, group, rows in zip(NAMES, groups[1:], order.split(counts)[1:], strict=True):
            if len(rows):
                magnitude = draws.magnitude[rows, turn]
                done.append(apply_operation(group, name, magnitude, centre=centre[rows, turn]))
        images, place = torch.cat(done), order.argsort()
    return images.index_select(0, place.to(images.device))
