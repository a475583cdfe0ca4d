"""From chances of operations to an architecture.

``connectivity``: the operation of an edge is the likeliest. Edges whose likeliest is ``none`` are
dropped, and of a node's others the two strongest stay, by the chance of their best operation that
is not ``none``. A node that has lost every input keeps the strongest. The published cells, in which
some nodes have one input, need this rule.

``two_inputs``: the rule of DARTS (Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055). A node always
has the two inputs that are strongest in the same sense, each with its best operation that is not
``none``.

Between equals the first place, and the first operation, is taken.
"""

from torch import Tensor

from raykb.nas.genotype import CELLS, NODES, PLACES, Edge, Genotype, SearchSpace

RULES = ("connectivity", "two_inputs")
MOST_INPUTS = 2


def derive(chances: Tensor, space: SearchSpace, *, rule: str = "connectivity") -> Genotype:
    """Return the architecture that chances make likely; no cell of it is zero.

    Args:
        chances: p (cell types, places, |O|).
        space: what the operations are called.
        rule: of :data:`RULES`.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule: {rule!r}, must be one of {', '.join(RULES)}")

    def cell(table: list[list[float]]) -> tuple[Edge, ...]:
        named = [dict(zip(space.operations, row, strict=True)) for row in table]
        return tuple(edge for node in NODES for edge in _inputs(node, named, rule))

    table = chances.tolist()
    return Genotype(**{kind: cell(table[c]) for c, kind in enumerate(CELLS)})


def _inputs(node: str, chances: list[dict[str, float]], rule: str) -> list[Edge]:
    """Return the edges that a node keeps, of the chances of all operations at all places."""
    likeliest = [max(row, key=row.__getitem__) for row in chances]
    best = [max((name for name in row if name != "none"), key=row.__getitem__) for row in chances]
    places = [e for e, place in enumerate(PLACES) if place.node == node]
    ranked = sorted(places, key=lambda e: -chances[e][best[e]])  # stable: equals stay in order
    if rule == "connectivity":
        ranked = [e for e in ranked if likeliest[e] != "none"] or ranked[:1]
    return [Edge(PLACES[e].node, PLACES[e].source, best[e]) for e in ranked[:MOST_INPUTS]]
