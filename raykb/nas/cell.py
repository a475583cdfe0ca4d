"""A cell: a small graph of operations between two inputs and one output.

Kim et al., MICCAI 2019, arXiv:1906.05956.

    x_j    = sum over the edges (i, j) of o_ij(x_i)              s0, s1, n0, ..., j - 1 are the i
    output = SE(n1 | n2 | n3)                                    3 C channels

Symbols:
    C      channels of the cell; each input is projected to C channels at the cell's own sides
    SE     squeeze and excitation with reduction 6 (Hu, Shen, Sun, CVPR 2018)

One class serves search and what is found. An edge has candidates: all operations of the search
space in a supernet, where a :class:`Choice` says which are run, and one in a derived network.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raykb.nas.genotype import CONCATENATED, INPUTS, NODES, Place
from raykb.nas.operations import (
    INTERPOLATIONS,
    OPERATIONS,
    FactorisedReduce,
    convolution,
    zeros,
)


class Choice(NamedTuple):
    """What is run of an edge's candidates, in order of the search space's operations.

    Attributes:
        drawn: those whose outputs make up the edge's.
        watched: those whose gate is zero: they are run without a graph, for the gate's gradient.
        gates: (|O|,) what outputs are multiplied with; None for all ones.
    """

    drawn: Sequence[int]
    watched: Sequence[int] = ()
    gates: Tensor | None = None


class Candidates(nn.ModuleDict):
    """The candidate operations of one edge.

    Args:
        operations: names.
        channels: C.
        stride: of the edge.
        dims: 2 or 3.
    """

    def __init__(self, operations: Sequence[str], channels: int, *, stride: int, dims: int):
        super().__init__(
            {name: OPERATIONS[name](channels, stride=stride, dims=dims) for name in operations}
        )

    def forward(self, x: Tensor, choice: Choice) -> list[Tensor]:
        """Return what is to be added up, (N, C, sides / stride) each; nothing for no edge.

        A gate's gradient is G_k = <dL/d output, o_k(x)>. Through an operation whose gate is zero
        no gradient goes further, so it needs no graph.
        """
        operations = list(self.values())
        outputs: list[Tensor] = [operations[k](x) for k in choice.drawn]
        with torch.no_grad():
            outputs += [operations[k](x) for k in choice.watched]
        if choice.gates is None:
            return outputs
        ran = [*choice.drawn, *choice.watched]
        return [choice.gates[k] * output for k, output in zip(ran, outputs, strict=True)]


class SqueezeExcitation(nn.Module):
    """Scale each channel by what the means of all channels say, in (0, 1).

    Args:
        channels: at least 1; the hidden width is a sixth of them, at least 1.
    """

    def __init__(self, channels: int, reduction: int = 6) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, sides) scaled."""
        means = x.flatten(2).mean(2)  # (N, channels)
        scales: Tensor = self.excite(self.squeeze(means).relu()).sigmoid()  # (N, channels)
        return x * scales.reshape(*scales.shape, *[1] * (x.ndim - 2))


def project(inputs: int, channels: int, dims: int) -> nn.Module:
    """Return the projection of a cell's input that has the cell's sides."""
    return convolution(inputs, channels, 1, dims=dims)


def reduce(inputs: int, channels: int, dims: int) -> nn.Module:
    """Return the projection of one with twice the sides."""
    return FactorisedReduce(inputs, channels, dims=dims, affine=False)


def upsample(inputs: int, channels: int, dims: int) -> nn.Module:
    """Return the projection of one with half the sides."""
    larger = nn.Upsample(scale_factor=2, mode=INTERPOLATIONS[dims], align_corners=True)
    return nn.Sequential(larger, *convolution(inputs, channels, 1, dims=dims))


PROJECTIONS = {"project": project, "reduce": reduce, "upsample": upsample}


class CellPlan(NamedTuple):
    """Where a cell stands in a network.

    Attributes:
        name: ``encoder0``, ``bridge``, ``decoder3``.
        kind: which of the four types of cells it is.
        channels: C.
        level: how often the sides are halved at its output.
        inputs: channels of s0 and s1.
        projections: how s0 and s1 come to the cell's sides, of :data:`PROJECTIONS`.
    """

    name: str
    kind: str
    channels: int
    level: int
    inputs: tuple[int, int]
    projections: tuple[str, ...]

    def stride(self, place: Place) -> int:
        """Return the stride of an edge: 2 where a reduction's inputs enter."""
        return 2 if self.kind == "reduction" and place.source in INPUTS else 1


class Cell(nn.Module):
    """A cell.

    Args:
        plan: where it stands.
        candidates: operations of each edge, by place; places without any have no edge.
        dims: 2 or 3.
    """

    def __init__(
        self, plan: CellPlan, candidates: Mapping[Place, Sequence[str]], *, dims: int
    ) -> None:
        super().__init__()
        self.plan = plan
        self.projections = nn.ModuleDict(
            {
                source: PROJECTIONS[how](inputs, plan.channels, dims)
                for source, inputs, how in zip(INPUTS, plan.inputs, plan.projections, strict=True)
            }
        )
        self.places = tuple(candidates)
        self.edges = nn.ModuleDict(
            {
                place.name: Candidates(
                    operations, plan.channels, stride=plan.stride(place), dims=dims
                )
                for place, operations in candidates.items()
            }
        )
        self.squeeze = SqueezeExcitation(len(CONCATENATED) * plan.channels)

    def forward(self, s0: Tensor, s1: Tensor, choices: Mapping[Place, Choice] | None) -> Tensor:
        """Return (N, 3 C, the cell's sides); ``choices`` None runs the first of each edge."""
        first = Choice(drawn=[0])
        states = {
            source: self.projections[source](x) for source, x in zip(INPUTS, (s0, s1), strict=True)
        }
        dead = zeros(states["s0"], self.plan.channels, self.plan.stride(Place("n0", "s0")))
        for node in NODES:
            incoming = [
                output
                for place in self.places
                if place.node == node
                for output in self.edges[place.name](
                    states[place.source], first if choices is None else choices[place]
                )
            ]
            states[node] = sum(incoming[1:], incoming[0]) if incoming else dead
        output: Tensor = self.squeeze(torch.cat([states[node] for node in CONCATENATED], dim=1))
        return output
