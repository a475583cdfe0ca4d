"""What a run compares: whole configs that differ in one section, times seeds."""

import pytest

from raykb.comparison import Comparison
from raykb.engine.seeding import stream_seed

LOOSE = {"name": "fixmatch", "threshold": 0.8}
CONFIG = {"seed": 3, "method": {"name": "uda", "threshold": 0.7}, "model": {"name": "resnet18"}}


def test_the_runs_own_section_comes_last_and_is_called_by_its_name():
    entries = Comparison(rivals={"loose": LOOSE}).entries(CONFIG)
    assert list(entries) == ["loose", "uda"]
    assert entries["uda"] == CONFIG
    assert entries["loose"] == CONFIG | {"method": LOOSE}


def test_it_may_be_called_otherwise_and_a_section_without_a_name_by_what_it_is():
    comparison = Comparison(label="ours", rivals={"uda": LOOSE})
    assert list(comparison.entries(CONFIG)) == ["uda", "ours"]
    config = CONFIG | {"recipe": {"steps": 3}}
    assert Comparison(over="recipe").subject(config) == "recipe"


@pytest.mark.parametrize("over", ["method", "model"])
def test_any_section_can_be_the_one_that_differs(over):
    entries = Comparison(over=over, rivals={"other": {"name": "x"}}).entries(CONFIG)
    assert entries["other"] == CONFIG | {over: {"name": "x"}}
    assert list(entries) == ["other", CONFIG[over]["name"]]


def test_a_number_means_the_same_seed_for_every_entry_and_a_stream_has_its_own():
    comparison = Comparison(seeds=2, rivals={"loose": LOOSE})
    trainings = comparison.trainings(CONFIG)
    assert [entry.name for entry in trainings] == [
        "loose/seed-0",
        "uda/seed-0",
        "loose/seed-1",
        "uda/seed-1",
    ]
    assert [entry.place for entry in trainings] == [0, 1, 2, 3]
    seeds = [stream_seed(3, "training", number) for number in (0, 1)]
    assert [entry.seed for entry in trainings] == [seeds[0], seeds[0], seeds[1], seeds[1]]
    assert comparison.seeds_of(CONFIG, "final") == [stream_seed(3, "final", n) for n in (0, 1)]
    assert [entry.seed for entry in comparison.trainings(CONFIG, "final")][::2] == (
        comparison.seeds_of(CONFIG, "final")
    )


def test_two_of_one_name_are_refused():
    comparison = Comparison(rivals={"uda": LOOSE})
    with pytest.raises(ValueError, match=r"rivals: 'uda' is what the section 'method' is called"):
        comparison.entries(CONFIG)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(
        ValueError, match=r"seeds: 0, must be at least 1; rivals: 'a/b'.*; label: '\.x'"
    ):
        Comparison(seeds=0, rivals={"a/b": LOOSE, "c": LOOSE}, label=".x")
