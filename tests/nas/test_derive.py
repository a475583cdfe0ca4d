import pytest
import torch
from shared_search import SPACE

from raykb.nas.derive import RULES, derive
from raykb.nas.genotype import CELLS, CONCATENATED, PLACES, Place, live_nodes
from raykb.nas.scnas import GOLDEN


def chances(default="none", *, rest=0.02, **edges):
    """Return p of cells that are all alike: edges by name, as s0_n1={"conv_3": 0.6}."""
    table = torch.full((len(PLACES), len(SPACE.operations)), rest)
    for e, place in enumerate(PLACES):
        for name, chance in edges.get(place.name, {default: 0.9}).items():
            table[e, SPACE.operations.index(name)] = chance
    return table.expand(len(CELLS), -1, -1)


def edges(table, rule):
    return set(derive(table, SPACE, rule=rule).reduction)


def test_the_published_cells_come_out_of_their_own_chances():
    table = chances().clone()
    for c, cell in enumerate(GOLDEN.cells.values()):
        for edge in cell:
            e = PLACES.index(edge.place)
            table[c, e] = 0.02
            table[c, e, SPACE.operations.index(edge.operation)] = 0.9
    assert derive(table, SPACE) == GOLDEN
    assert derive(table, SPACE, rule="two_inputs") != GOLDEN


def test_an_edge_whose_likeliest_is_none_is_dropped_by_one_rule_only():
    table = chances(
        s0_n1={"conv_3": 0.6},
        s1_n1={"none": 0.5, "identity": 0.4},
        s1_n2={"identity": 0.9},
        s1_n3={"identity": 0.9},
    )
    connectivity, two_inputs = edges(table, "connectivity"), edges(table, "two_inputs")
    assert [e for e in connectivity if e[0] == "n1"] == [("n1", "s0", "conv_3")]
    assert {e for e in two_inputs if e[0] == "n1"} == {
        ("n1", "s0", "conv_3"),
        ("n1", "s1", "identity"),
    }
    assert all(sum(e[0] == node for e in two_inputs) == 2 for node in CONCATENATED)


@pytest.mark.parametrize("rule", RULES)
def test_the_two_strongest_inputs_stay(rule):
    table = chances(
        s0_n3={"conv_3": 0.5},
        s1_n3={"identity": 0.7},
        n1_n3={"avg_pool_3": 0.6},
        s0_n1={"conv_3": 0.9},
    )
    assert {e for e in edges(table, rule) if e[0] == "n3"} == {
        ("n3", "s1", "identity"),
        ("n3", "n1", "avg_pool_3"),
    }


@pytest.mark.parametrize("rule", RULES)
def test_a_node_that_lost_every_input_keeps_its_best(rule):
    table = chances(n0_n2={"none": 0.6, "conv_3_dilation_3": 0.3}, s0_n0={"conv_3": 0.9})
    found = edges(table, rule)
    assert ("n2", "n0", "conv_3_dilation_3") in found
    assert live_nodes(derive(table, SPACE, rule=rule).expansion) >= {*CONCATENATED}


@pytest.mark.parametrize("rule", RULES)
def test_between_equals_the_first_is_taken(rule):
    table = torch.full((len(CELLS), len(PLACES), len(SPACE.operations)), 1 / 6)
    found = derive(table, SPACE, rule=rule)
    assert found == derive(table, SPACE, rule=rule)
    assert {edge.operation for edge in found.reduction} == {"identity"}
    assert Place("n1", "s0") in {edge.place for edge in found.reduction}


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule: 'r1', must be one of connectivity, two_inputs"):
        derive(chances(), SPACE, rule="r1")
