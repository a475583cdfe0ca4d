"""What a search finds: four cells, written down so that equal ones are equal files.

A cell has two inputs ``s0`` (of the cell before the last) and ``s1`` (of the last), and four nodes
``n0`` to ``n3``. A node is the sum of its edges, each an operation on an input or an earlier node;
``n1``, ``n2`` and ``n3``, concatenated, are the cell's output. So a cell has 14 places for edges,
and a network four types of cells:

    reduction        halves the sides in the encoder; its edges from s0 and s1 have stride 2
    encoder_normal   keeps them
    expansion        doubles them in the decoder
    decoder_normal   keeps them

Departures:
    - a reader's notes of the paper concatenate all nodes; the two public copies of the network
      concatenate these three, and so do we.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from raykb.engine.foreign import parsed
from raykb.nas.operations import OPERATIONS

CELLS = ("reduction", "encoder_normal", "expansion", "decoder_normal")
INPUTS = ("s0", "s1")
NODES = ("n0", "n1", "n2", "n3")
CONCATENATED = NODES[1:]

FORMAT, VERSION = "raykb.genotype", 1


class Place(NamedTuple):
    """Where an edge may be."""

    node: str
    source: str

    @property
    def name(self) -> str:
        """The name of the module that stands there."""
        return f"{self.source}_{self.node}"


PLACES = tuple(
    Place(node, source)
    for number, node in enumerate(NODES)
    for source in (*INPUTS, *NODES[:number])
)


Allowed = Mapping[str, Mapping[Place, Sequence[str]]]
"""Names of the operations that may stand in a place, by type of cell and place."""


class Edge(NamedTuple):
    """An operation in its place: ``node`` adds up ``operation(source)``."""

    node: str
    source: str
    operation: str

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.node, self.source)


def live_nodes(edges: Iterable[Edge]) -> set[str]:
    """Return the nodes that are not zero: those with an edge from what is not."""
    live = set(INPUTS)
    for node, source, operation in sorted(edges):
        if operation != "none" and source in live:
            live.add(node)
    return live - set(INPUTS)


def without_dead(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Return the edges that the cell's output depends on, sorted.

    What leaves a node of zeros is zero, whatever its operation; what enters a node that is not
    concatenated and that nothing leaves is lost.
    """
    live = {*INPUTS, *live_nodes(edges)}
    kept = sorted(e for e in edges if e.operation != "none" and e.source in live)
    used = {*CONCATENATED, *(edge.source for edge in kept)}
    return tuple(edge for edge in kept if edge.node in used)


@dataclass(frozen=True)
class SearchSpace:
    """The operations that an edge of a cell is chosen from.

    Attributes:
        operations: names of :data:`raykb.nas.operations.OPERATIONS`, each once; two or more.

    Raises:
        ValueError: they are not as above.
    """

    operations: tuple[str, ...] = tuple(OPERATIONS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        names = self.operations
        problems = [f"{name!r}" for name in names if name not in OPERATIONS]
        problems += [f"{name!r} twice" for name in {*names} if names.count(name) > 1]
        if problems or len({*names} - {"none"}) < 1 or len(names) < 2:
            raise ValueError(
                f"operations: {list(names)}{', has ' if problems else ''}{', '.join(problems)}; "
                f"must be two or more of {', '.join(OPERATIONS)}, each once"
            )

    @property
    def allowed(self) -> Allowed:
        """What a network that holds all architectures has in each place: all operations."""
        return dict.fromkeys(CELLS, dict.fromkeys(PLACES, self.operations))

    @property
    def size(self) -> int:
        """Architectures there are: |O|^14 for each of the four cells, before any rule."""
        return int(len(self.operations) ** (len(PLACES) * len(CELLS)))


@dataclass(frozen=True, kw_only=True)
class Genotype:
    """Four cells, each the edges that its output depends on, sorted.

    Edges are (node, source, operation). What the output does not depend on is dropped, so
    genotypes that differ in such edges, or in the order of edges, are equal.

    Raises:
        ValueError: naming every problem of the cells at once: what is no edge, two operations in
            one place, a cell whose output is zero.
    """

    reduction: tuple[tuple[str, str, str], ...]
    encoder_normal: tuple[tuple[str, str, str], ...]
    expansion: tuple[tuple[str, str, str], ...]
    decoder_normal: tuple[tuple[str, str, str], ...]

    def __post_init__(self) -> None:
        if problems := [line for name in CELLS for line in _problems(name, getattr(self, name))]:
            raise ValueError("\n  - ".join([f"genotype: {len(problems)} problem(s)", *problems]))
        for name in CELLS:
            edges = [Edge(*edge) for edge in getattr(self, name)]
            object.__setattr__(self, name, without_dead(edges))

    @property
    def cells(self) -> dict[str, tuple[Edge, ...]]:
        """The edges of each type of cell."""
        return {name: tuple(Edge(*edge) for edge in getattr(self, name)) for name in CELLS}

    @property
    def allowed(self) -> Allowed:
        """What its network has in each place that has an edge: the one operation."""
        return {
            name: {edge.place: (edge.operation,) for edge in edges}
            for name, edges in self.cells.items()
        }

    @property
    def sizes(self) -> dict[str, int]:
        """The number of edges of each type of cell."""
        return {name: len(edges) for name, edges in self.cells.items()}

    @property
    def hash(self) -> str:
        """16 hexadecimal digits, equal for equal genotypes, in any version of Python."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def share(self, operation: str) -> float:
        """Return the share of the edges of all cells that are ``operation``."""
        edges = [edge for cell in self.cells.values() for edge in cell]
        return sum(edge.operation == operation for edge in edges) / len(edges)

    def to_json(self) -> str:
        """Return the genotype as JSON, a cell a line; equal genotypes give equal text."""
        cells = ",\n    ".join(f'"{name}": {json.dumps(self.cells[name])}' for name in CELLS)
        head = f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n'
        return f'{head}  "cells": {{\n    {cells}\n  }}\n}}\n'

    @staticmethod
    def from_json(text: str) -> "Genotype":
        """Return the genotype that :meth:`to_json` wrote.

        Raises:
            ValueError: not JSON, not a genotype, another version, or problems of its cells.
        """
        try:
            content = parsed(text)
        except ValueError as error:
            raise ValueError(
                f"genotype: not JSON ({error}); must be what Genotype.to_json() writes"
            ) from error
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        if given != FORMAT:
            raise ValueError(
                f"genotype: format {given!r}; must be an object with 'format': {FORMAT!r}, as "
                "Genotype.to_json() writes it"
            )
        if (version := content.get("version")) != VERSION:
            raise ValueError(
                f"genotype: version {version!r}, must be {VERSION}; write the file again with "
                "this version's Genotype.to_json()"
            )
        cells = content.get("cells")
        if not isinstance(cells, dict) or set(cells) != set(CELLS):
            found = sorted(cells) if isinstance(cells, dict) else cells
            raise ValueError(f"genotype: cells {found!r}, must be the four {', '.join(CELLS)}")
        return Genotype(**cells)


def _problems(cell: str, edges: Any) -> list[str]:
    """Return everything that keeps ``edges`` from being a cell, in words."""
    if not isinstance(edges, list | tuple):
        return [f"{cell}: {edges!r}, must be a list of edges"]
    problems = []
    for edge in edges:
        whole = isinstance(edge, list | tuple) and len(edge) == 3
        if not whole or not all(isinstance(word, str) for word in edge):
            problems.append(f"{cell}: {edge!r}, must be (node, source, operation), three names")
        elif tuple(edge[:2]) not in PLACES:
            problems.append(
                f"{cell}: edge from {edge[1]!r} to {edge[0]!r}, must be from one of "
                f"{', '.join(INPUTS)} or an earlier node to one of {', '.join(NODES)}"
            )
        elif edge[2] not in OPERATIONS:
            problems.append(f"{cell}: {edge[2]!r}, must be one of {', '.join(OPERATIONS)}")
    if problems:
        return problems
    places = [tuple(edge[:2]) for edge in edges]
    problems += [
        f"{cell}: {places.count(place)} edges from {place[1]!r} to {place[0]!r}, must be one; a "
        "node adds up each of its inputs once"
        for place in sorted({*places})
        if places.count(place) > 1
    ]
    if not live_nodes(Edge(*edge) for edge in edges) & set(CONCATENATED):
        problems.append(
            f"{cell}: {', '.join(CONCATENATED)} are all zero, must not be; join one of them to an "
            "input"
        )
    return problems


def random_genotype(
    space: SearchSpace,
    sizes: Mapping[str, int],
    generator: torch.Generator,
    *,
    most_inputs: int = 2,
) -> Genotype:
    """Return a genotype drawn uniformly from those of a size.

    Args:
        space: what operations there are; ``none`` is no edge.
        sizes: edges of each type of cell, as :attr:`Genotype.sizes` of what it is compared with.
        generator: where the numbers come from.
        most_inputs: edges that a node may have, as a derived cell has two.

    Raises:
        ValueError: no cell has so many edges.
    """
    most = sum(min(most_inputs, len(INPUTS) + number) for number in range(len(NODES)))
    if wrong := {name: n for name, n in sizes.items() if not 1 <= n <= most}:
        raise ValueError(
            f"sizes: {wrong}, must be in 1..{most} with at most {most_inputs} inputs of a node"
        )
    operations = [name for name in space.operations if name != "none"]

    def cell(size: int) -> tuple[Edge, ...]:
        while True:  # 20 times for the largest: of all choices of 8 places 5 % are cells
            chosen = [PLACES[i] for i in torch.randperm(len(PLACES), generator=generator)[:size]]
            if any(sum(p.node == node for p in chosen) > most_inputs for node in NODES):
                continue
            picks = torch.randint(len(operations), (size,), generator=generator).tolist()
            edges = [
                Edge(place.node, place.source, operations[i])
                for place, i in zip(chosen, picks, strict=True)
            ]
            if len(without_dead(edges)) == size:
                return without_dead(edges)

    return Genotype(**{name: cell(sizes[name]) for name in CELLS})
