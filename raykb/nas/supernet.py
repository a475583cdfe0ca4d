"""The network that holds all architectures, and the parameters that say which are likely.

Weights and architecture parameters are two modules. The weights are a network of cells in which
every edge has all operations of the search space; it runs those that it is told to run. The
architecture parameters are one tensor for all four types of cells, because cells of a type share
their architecture at every depth. They stay on the CPU: they are a few hundred numbers that decide
what a device has to do next, so the device is never waited for to make a draw.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raykb.nas.cell import Choice
from raykb.nas.genotype import (
    CELLS,
    CONCATENATED,
    PLACES,
    Edge,
    Genotype,
    Place,
    SearchSpace,
    live_nodes,
)
from raykb.nas.operations import multiply_adds
from raykb.nas.samplers import Draw, Sampler
from raykb.nas.scnas import ScNas

MOST_DRAWS = 1000

Choices = Mapping[str, Mapping[Place, Choice]]
"""What is run, by type of cell and place."""


class Architecture(nn.Module):
    """The architecture parameters.

    Args:
        space: what operations there are.

    Attributes:
        alpha: (cell types, places, |O|) on the CPU, zeros at first: all operations are as likely.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        shape = (len(CELLS), len(PLACES), len(space.operations))
        self.alpha = nn.Parameter(torch.zeros(shape, device="cpu"))

    def probabilities(self) -> Tensor:
        """Return p = softmax(alpha), (cell types, places, |O|), without gradient."""
        return self.alpha.detach().softmax(-1)

    def entropies(self) -> dict[str, float]:
        """Return the mean over edges of -sum_k p_k log p_k in nats, by type of cell."""
        entropies = torch.special.entr(self.probabilities()).sum(-1).mean(-1)
        return dict(zip(CELLS, entropies.tolist(), strict=True))


class ChosenNetwork(nn.Module):
    """A supernet as a network like any other: of images alone, at the choices that it was given.

    Args:
        supernet: whose weights it has.

    Attributes:
        choices: what is run.
    """

    def __init__(self, supernet: ScNas) -> None:
        super().__init__()
        self.supernet = supernet
        self.choices: Choices | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes, sides) of images (N, channels, sides)."""
        logits: Tensor = self.supernet(images, self.choices)
        return logits


def draw_cells(
    sampler: Sampler,
    logits: Tensor,
    space: SearchSpace,
    generator: torch.Generator,
    *,
    epoch: int = 0,
) -> Draw:
    """Return a draw (cell types, places, |O|) in which no cell's output is zero.

    One that is zero is drawn again: types of cells are independent, so this is the law of the
    draws given that none is, which the gradients of the samplers do not know of. The same draw
    serves a whole batch, and all cells of a type.

    Args:
        sampler: draws.
        logits: alpha (cell types, places, |O|), without gradient.
        space: what the operations are called.
        generator: where the numbers come from.
        epoch: of learning alpha.

    Raises:
        RuntimeError: of a thousand draws none is without such a cell.
    """
    for _ in range(MOST_DRAWS):
        draw = sampler.draw(logits, generator, epoch)
        if all(_gives_something(cell, space) for cell in draw.drawn.tolist()):
            return draw
    raise RuntimeError(
        f"alpha: of {MOST_DRAWS} draws each has a cell whose output is zero, so 'none' has won "
        "nearly everywhere; lower the learning rate of alpha or the weight of the cost, or take a "
        "space without 'none'"
    )


def _gives_something(drawn: list[list[int]], space: SearchSpace) -> bool:
    edges = [
        Edge(place.node, place.source, space.operations[k])
        for place, operations in zip(PLACES, drawn, strict=True)
        for k in operations
    ]
    return bool(live_nodes(edges) & {*CONCATENATED})


def choices_of_draw(
    draw: Draw, gates: Tensor | None, *, device: torch.device, watch: bool
) -> Choices:
    """Return what a draw has a supernet run.

    Args:
        draw: (cell types, places, |O|).
        gates: its gates, with or without gradient; None for a discrete network of the drawn ones.
        device: where the supernet is.
        watch: whether to run what is only watched, too.
    """
    there = None if gates is None else gates.to(device)
    drawn, watched = draw.drawn.tolist(), draw.watched.tolist()
    return {
        kind: {
            place: Choice(
                drawn=drawn[c][e],
                watched=watched[c][e] if watch else [],
                gates=None if there is None else there[c, e],
            )
            for e, place in enumerate(PLACES)
        }
        for c, kind in enumerate(CELLS)
    }


def choices_of_genotype(genotype: Genotype, space: SearchSpace) -> Choices:
    """Return what has a supernet compute what the genotype's network would with its weights."""
    nothing = dict.fromkeys(PLACES, Choice(drawn=[]))
    return {
        kind: nothing
        | {edge.place: Choice(drawn=[space.operations.index(edge.operation)]) for edge in edges}
        for kind, edges in genotype.cells.items()
    }


def cost_table(space: SearchSpace, supernet: ScNas) -> Tensor:
    """Return c (cell types, places, |O|), the multiply-adds of each operation at its place.

    They are those of all cells of a type, each at its sides, as shares of the dearest network's.
    """
    table = torch.zeros(len(CELLS), len(PLACES), len(space.operations), device="cpu")
    for plan in supernet.plans:
        voxels = 2.0 ** (-plan.level * supernet.dims)  # of those of the image
        for e, place in enumerate(PLACES):
            for k, name in enumerate(space.operations):
                table[CELLS.index(plan.kind), e, k] += voxels * multiply_adds(
                    name, plan.channels, stride=plan.stride(place), dims=supernet.dims
                )
    dearest = table.max(-1).values.sum()
    return table / dearest


def expected_cost(alpha: Tensor, costs: Tensor) -> Tensor:
    """Return E[cost] = sum over edges of sum_k p_k c_k, a scalar in [0, 1]."""
    return (alpha.softmax(-1) * costs).sum()
