import json

import pytest
import torch

from raykb.nas.genotype import (
    CELLS,
    CONCATENATED,
    PLACES,
    Edge,
    Genotype,
    SearchSpace,
    live_nodes,
    random_genotype,
    without_dead,
)
from raykb.nas.scnas import GOLDEN

PLAIN = (("n1", "s0", "conv_3"), ("n2", "s1", "identity"), ("n3", "n1", "avg_pool_3"))


def genotype(**cells):
    return Genotype(**(dict.fromkeys(CELLS, PLAIN) | cells))


def test_a_cell_has_fourteen_places():
    assert len(PLACES) == 14
    assert PLACES[0] == ("n0", "s0")
    assert PLACES[-1] == ("n3", "n2")


def test_the_size_of_a_space_counts_each_place_of_each_cell():
    assert SearchSpace(("none", "identity")).size == 2 ** (14 * 4)


@pytest.mark.parametrize(
    "operations", [(), ("none",), ("conv_3",), ("conv_3", "conv_3"), ("none", "conv_5")]
)
def test_a_space_is_of_two_or_more_known_operations(operations):
    with pytest.raises(ValueError, match=r"operations: .*must be two or more of none, identity"):
        SearchSpace(operations)


def test_json_gives_the_genotype_back():
    assert Genotype.from_json(GOLDEN.to_json()) == GOLDEN
    assert len({GOLDEN, Genotype.from_json(GOLDEN.to_json())}) == 1


def test_the_hash_is_of_the_text_and_stays():
    assert GOLDEN.hash == "d9b1a64286f4a6b6"
    assert genotype().hash != GOLDEN.hash


def test_order_of_edges_and_dead_edges_do_not_count():
    lost = ("n0", "s1", "conv_3")  # nothing leaves n0
    nothing = ("n2", "s0", "none")
    same = genotype(reduction=(lost, *reversed(PLAIN), nothing))
    assert same == genotype()
    assert same.to_json() == genotype().to_json()
    from_zero = ("n2", "n0", "conv_3")  # nothing enters n0
    assert genotype(expansion=(*PLAIN, from_zero)) == genotype()


def test_what_is_dead_dies_in_a_chain():
    edges = [
        Edge("n0", "s0", "none"),
        Edge("n1", "n0", "conv_3"),
        Edge("n2", "n1", "identity"),
        Edge("n3", "s1", "conv_3"),
    ]
    assert live_nodes(edges) == {"n3"}
    assert without_dead(edges) == (edges[-1],)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((), "reduction: n1, n2, n3 are all zero"),
        ((("n0", "s0", "conv_3"),), "n1, n2, n3 are all zero"),
        ((("n1", "n0", "conv_3"),), "n1, n2, n3 are all zero"),
        ((*PLAIN, ("n1", "s0", "identity")), "reduction: 2 edges from 's0' to 'n1'"),
        ((("n1", "n2", "conv_3"),), "reduction: edge from 'n2' to 'n1'"),
        ((("n1", "s0", "conv_7"),), "reduction: 'conv_7', must be one of none"),
        ((("n1", "s0"),), r"must be \(node, source, operation\)"),
        ((("n1", ["s0"], "conv_3"),), r"must be \(node, source, operation\)"),
        ("n1", "reduction: 'n1', must be a list of edges"),
    ],
)
def test_what_is_no_cell_is_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        genotype(reduction=cell)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"2 problem\(s\)\n  - reduction: .*\n  - expansion: "):
        genotype(reduction=(), expansion=(("n1", "s0", "conv_7"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "raykb.policy"}, "format 'raykb.policy'; must be"),
        ({"version": 2}, "version 2, must be 1"),
        ({"cells": {"reduction": []}}, r"cells \['reduction'\], must be the four"),
        ({"cells": 3}, "cells 3, must be the four"),
        ({"cells": dict.fromkeys(CELLS)}, r"4 problem\(s\)"),
    ],
)
def test_a_file_of_something_else_is_refused(change, message):
    text = json.dumps(json.loads(GOLDEN.to_json()) | change)
    with pytest.raises(ValueError, match=message):
        Genotype.from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "3"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match=r"genotype: (not JSON|format)"):
        Genotype.from_json(text)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_random_genotype_has_the_size_asked_for(size, seed):
    def draw():
        numbers = torch.Generator().manual_seed(seed)
        return random_genotype(SearchSpace(), dict.fromkeys(CELLS, size), numbers)

    found = draw()
    assert found == draw()
    assert found.sizes == dict.fromkeys(CELLS, size)
    for edges in found.cells.values():
        assert live_nodes(edges) & {*CONCATENATED}
        nodes = [edge.node for edge in edges]
        assert max(map(nodes.count, nodes)) <= 2


def test_random_genotypes_are_many():
    numbers = torch.Generator().manual_seed(0)
    found = {random_genotype(SearchSpace(), GOLDEN.sizes, numbers) for _ in range(20)}
    assert len(found) == 20


def test_a_size_that_no_cell_has_is_refused():
    sizes = dict.fromkeys(CELLS, 9)
    with pytest.raises(ValueError, match=r"sizes: .*must be in 1..8"):
        random_genotype(SearchSpace(), sizes, torch.Generator())


def test_shares_are_of_all_edges():
    assert genotype().share("identity") == pytest.approx(1 / 3)
    assert genotype().share("conv_3_dilation_3") == 0
