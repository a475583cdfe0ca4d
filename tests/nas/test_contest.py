import pytest
import torch

from raykb.nas import GOLDEN, SearchSpace, random_genotype
from raykb.nas.contest import Beside, best_of, contest, is_taken, mean_by_seed
from raykb.nas.genotype import CELLS, Genotype
from raykb.nas.halving import Halving

SPACE = SearchSpace()


def drawn(seed, sizes=GOLDEN.sizes):
    return random_genotype(SPACE, sizes, torch.Generator().manual_seed(seed))


def of(found, space=SPACE, seed=0, **beside):
    numbers = torch.Generator().manual_seed(seed)
    return contest(found, space, beside=Beside(**beside), generator=numbers).genotypes


def test_an_architecture_that_was_found_twice_is_trained_once():
    again = Genotype(**{name: tuple(reversed(edges)) for name, edges in drawn(0).cells.items()})
    kept = of({"a": drawn(0), "b": again, "c": drawn(1), "d": GOLDEN}, random=0)
    assert kept == {"a": drawn(0), "c": drawn(1), "d": GOLDEN}
    assert of({"a": drawn(0)}, random=0, golden=True) == {"a": drawn(0), "golden": GOLDEN}
    assert of({"a": drawn(0)}, random=0, golden=False) == {"a": drawn(0)}


def test_random_ones_are_of_the_size_of_the_first_and_differ():
    kept = of({"a": drawn(0), "b": GOLDEN}, random=5, golden=False)
    assert list(kept) == ["a", "b", *(f"random_{number}" for number in range(5))]
    assert len({genotype.hash for genotype in kept.values()}) == 7
    assert all(kept[f"random_{n}"].sizes == drawn(0).sizes for n in range(5))
    assert of({"a": drawn(0), "b": GOLDEN}, random=5, golden=False) == kept
    assert of({"a": drawn(0), "b": GOLDEN}, random=5, golden=False, seed=1) != kept


def test_more_random_ones_than_there_are_cannot_be_had(monkeypatch):
    space, one = SearchSpace(("none", "identity")), (("n1", "s0", "identity"),)
    found = Genotype(**dict.fromkeys(CELLS, one))
    assert len(of({"a": found}, space, random=20, golden=False)) == 21
    monkeypatch.setattr("raykb.nas.contest._DRAWS", 1)
    with pytest.raises(ValueError, match=r"random: 2000, must be at most \d+: there are no more"):
        of({"a": found}, space, random=2000, golden=False)


ROWS_NSD = [("a", 0.2), ("b", 0.4)]
ROWS = [
    {"label": "a", "seed": 0, "dice": 0.9},
    {"label": "a", "seed": 1, "dice": 0.1},
    {"label": "b", "seed": 0, "dice": 0.6},
    {"label": "c", "seed": 0},
]


def test_the_best_has_the_highest_mean_and_one_without_figures_is_the_last():
    assert best_of(["c", "a", "b"], ROWS, "dice") == "b"
    assert best_of(["c", "a"], ROWS, "dice") == "a"
    assert best_of(["c", "d"], ROWS, "dice") == "c"


def test_a_mean_over_random_ones_is_of_seeds_that_all_of_them_have():
    assert mean_by_seed(["a", "b"], ROWS, ["dice", "nsd"]) == [
        {"label": "random", "seed": 0, "dice": pytest.approx(0.75)}
    ]
    assert mean_by_seed(["a"], ROWS, ["dice"]) == []
    both = [{"label": label, "seed": 3, "dice": 0.5, "nsd": nsd} for label, nsd in ROWS_NSD]
    assert mean_by_seed(["a", "b"], both, ["dice", "nsd"]) == [
        {"label": "random", "seed": 3, "dice": 0.5, "nsd": pytest.approx(0.3)}
    ]


def test_who_found_a_genotype_is_told_with_it():
    numbers = torch.Generator().manual_seed(0)
    found = {"a": drawn(0), "b": drawn(1), "c": drawn(0)}
    entrants = contest(found, SPACE, beside=Beside(random=1, golden=False), generator=numbers)
    assert entrants.challengers == ["a", "b"]
    assert entrants.random == ["random_0"]
    told = entrants.record()["genotypes"]
    assert {label: own["found_by"] for label, own in told.items()} == {
        "a": ["a", "c"],
        "b": ["b"],
        "random_0": [],
    }
    assert Genotype(**told["a"]["cells"]).hash == told["a"]["hash"] == drawn(0).hash


def test_at_a_rung_the_best_go_on_and_one_that_was_found_always_does():
    numbers = torch.Generator().manual_seed(0)
    found = {"a": drawn(0), "b": drawn(1)}
    entrants = contest(found, SPACE, beside=Beside(random=4), generator=numbers)
    assert entrants.halved == ["a", "b", "random_0", "random_1", "random_2", "random_3"]
    dice = {"a": 0.2, "b": 0.3, "random_0": 0.9, "random_1": 0.5, "random_2": 0.6}
    rows = [{"label": label, "seed": 0, "dice": value} for label, value in dice.items()]
    rows += [{"label": "random_0", "seed": 1, "dice": 0.2}]
    halving = Halving(reduction_factor=2.5)
    assert entrants.survivors(halving, rows, "dice") == ["random_0", "random_2", "b"]
    assert entrants.survivors(halving, rows[2:], "dice") == ["random_0", "random_2"]
    assert entrants.survivors(halving, [], "dice") == []


def test_labels_that_a_contest_gives_are_taken():
    assert all(map(is_taken, ["golden", "random", "random_7", "transferred"]))
    assert not any(map(is_taken, ["two_path_0", "randomly", "golden_0"]))


def test_fewer_than_no_random_ones_are_refused():
    with pytest.raises(ValueError, match="random: -1, must be at least 0"):
        Beside(random=-1)
