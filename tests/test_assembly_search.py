"""The parts of a task's cases, and the search for an architecture that a config describes."""

import pytest
import torch

from raykb.assembly import Data, Folds, PlanSettings, opened, planned, prepared
from raykb.assembly.contest import retraining_data
from raykb.assembly.search import parts, rehearse_search, searching
from raykb.config import Problems
from raykb.data.phantoms import write_phantoms
from raykb.engine.loop import Worker, fit
from raykb.engine.seeding import seed_everything
from raykb.models import SEGMENTERS
from raykb.nas.found import found_network
from raykb.nas.genotype import Genotype
from raykb.segmentation import METHODS

PLAN = PlanSettings(patch=16, multiple=4, batch_size=2)
CONFIG = {
    "folds": {"splits": 3, "seed": 12345},
    "patches": {},
    "space": {"operations": ["none", "identity", "conv_3"]},
    "sampler": {"name": "two_path"},
    "search": {"warmup_epochs": 1, "alpha_lr": 0.1},
    "model": {"name": "scnas", "width": 1, "layers": 2, "bridge": False},
    "method": {"name": "dice_cross_entropy"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "constant"},
    "recipe": {"steps": 4, "evaluate_every": 2, "log_every": 2, "save_every": 0},
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_phantoms(folder / "phantoms", tasks=[4], cases=9, test_cases=0, size=16)
    (found,) = opened(folder / "phantoms")
    return prepared(found, PLAN, folder / "shards")


def whole(task, **sections):
    networks = SEGMENTERS | {"scnas": found_network}
    return planned(task.configuration, networks, CONFIG | sections)


def made(task, seed=0, **sections):
    seed_everything(seed)
    config = whole(task, **sections)
    return searching(Worker(), config=config, methods=METHODS, seed=seed, task=task)


def names(volumes):
    return [case.name for case in volumes.cases]


def test_each_case_is_in_one_part_and_folds_say_in_which(task):
    found = [names(part) for part in parts(task, Folds(splits=3))]
    assert [len(part) for part in found] == [4, 2, 3]
    assert sorted(name for part in found for name in part) == names(task.volumes)
    other = [names(part) for part in parts(task, Folds(splits=3, seed=1))]
    assert other != found


def test_too_few_cases_to_halve_are_refused(task, monkeypatch):
    few = task.volumes.subset(torch.arange(4).numpy())
    monkeypatch.setitem(task.__dict__, "volumes", few)
    with pytest.raises(ValueError, match="splits: 2 of 4 cases, leaves 1 to train on, must leave"):
        parts(task, Folds(splits=2))


def test_a_search_reads_its_halves_and_is_told_of_by_what_it_chooses_with(task, monkeypatch):
    read = {}
    monkeypatch.setattr(
        "raykb.assembly.search.PatchView",
        lambda volumes, *rest: read.setdefault(len(read), volumes),
    )
    made(task)
    train, valid, _ = parts(task, Folds(splits=3))
    ours, theirs = (names(volumes) for volumes in read.values())
    assert len(ours) == len(theirs) == 2
    assert sorted(ours + theirs) == sorted(names(train))
    monkeypatch.undo()

    logged = {}
    training = made(task)
    fit(training, log=lambda step, figures: logged.setdefault(step, {}).update(figures))
    assert {"valid/dice", "valid/search/entropy_expansion"} <= logged[2].keys() & logged[4].keys()
    found = training.evaluate("test")
    assert all(name.startswith("valid/") for name in found.figures)
    assert [*found.details["dice"]] == names(valid)
    assert Genotype(**found.details["genotype"]["cells"]).hash == found.details["genotype_hash"]


def test_another_seed_is_another_search_and_the_same_is_the_same(task):
    alphas = []
    for seed in (0, 0, 1):
        training = made(task, seed)
        fit(training, log=lambda step, figures: None)
        alphas.append(training.parts["architecture"].alpha.detach())
    assert torch.equal(alphas[0], alphas[1])
    assert not torch.equal(alphas[0], alphas[2])


def test_retraining_learns_from_both_halves_and_is_scored_on_both_other_parts(task):
    data = retraining_data(config=whole(task), seed=0, task=task)
    train, valid, test = (names(part) for part in parts(task, Folds(splits=3)))
    assert data.samples == len(train)
    assert names(data.feed.source.examples) == train
    assert {name: names(e) for name, e in data.evaluations.items()} == {"": test, "valid": valid}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sampler": {"name": "straight_through_executed"}}, "sampler: .*none"),
        (
            {"recipe": {"steps": 4, "evaluate_every": 0}},
            "supernet.evaluate_every: 0, must be above 0: an epoch",
        ),
        ({"search": {"warmup_epochs": 2}}, "warmup_epochs: 2, of 2 steps each, must end before"),
        ({"model": {"width": 1, "layers": 3, "bridge": True}}, "layers: 3, must be even"),
    ],
)
def test_what_is_wrong_with_a_search_is_known_without_data(section, message):
    problems = Problems()
    data = Data(feed=None, samples=4, classes=3, channels=1)
    rehearse_search(CONFIG | section, METHODS, data, problems)
    with pytest.raises(ValueError, match=message):
        problems.refuse("the search")


def test_a_search_that_can_be_is_rehearsed_without_a_word():
    problems = Problems()
    data = Data(feed=None, samples=4, classes=3, channels=1)
    rehearse_search(CONFIG, METHODS, data, problems)
    assert not problems
