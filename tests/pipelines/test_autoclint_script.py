"""A game as a training: what it leaves, and what becomes of one that is stopped."""

import copy
import json
import runpy
import time

import here
import numpy as np
import pytest
import running
import torch

from raykb.assembly import Budget, anytime_network
from raykb.augment.autoclint.player import Player

CONFIG = {"model": {"name": "small_convnet", "width": 2}}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(running.PIPELINES / "autoclint.py"))


def config(script, *overrides):
    small = [
        "comparison.seeds=1",
        "comparison.rivals={}",
        "budget.seconds=0.6",
        "strategy.candidates=0",
        *overrides,
    ]
    return here.resolved(script, script["DEFAULT"], *small)


def test_a_game_that_was_stopped_is_played_anew_from_its_first_second_and_one_that_ended_is_kept(
    script, tmp_path, monkeypatch
):
    tested = []

    def stops(self, dataset, left):
        tested.append(left)
        if len(tested) == 2:
            raise InterruptedError("killed in the middle of a game")
        return whole(self, dataset, left)

    whole = Player.test
    monkeypatch.setattr(Player, "test", stops)
    settings = config(script, "strategy.wait_s=0", "strategy.wait_most_s=0")
    with pytest.raises(InterruptedError):
        here.run(script, "autoclint", settings, tmp_path)
    assert not list(tmp_path.rglob("result.json"))
    here.run(script, "autoclint", settings, tmp_path)
    assert tested[2] == pytest.approx(tested[0])  # whatever the first game spent
    (details,) = tmp_path.rglob("details.json")
    ledger = json.loads(details.read_text())["ledger"]
    late = json.loads(details.with_name("result.json").read_text())["metrics"]["test/late"]
    assert len(ledger) + late == len(tested) - 2  # nothing of the first game
    count = len(tested)
    here.run(script, "autoclint", settings, tmp_path)
    assert len(tested) == count


def test_each_prediction_is_tracked_at_its_millisecond(script, tmp_path):
    session = here.run(script, "autoclint", config(script), tmp_path)
    (details,) = tmp_path.rglob("details.json")
    ledger = json.loads(details.read_text())["ledger"]
    run = next(run for name, run in session.tracker.runs.items() if "seed-0" in name)
    told = [(step, own) for step, own in run.points if "game/alc" in own]
    assert [step for step, _ in told] == [round(1000 * line["seconds"]) for line in ledger]
    assert [own["game/alc"] for _, own in told] == [line["alc"] for line in ledger]


def test_a_game_by_passes_is_the_same_twice_and_says_how_far_it_came(script, tmp_path):
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        here.run(script, "autoclint", config(script), folder)
        (result,) = folder.rglob("result.json")
        told = json.loads(result.with_name("details.json").read_text())
        found.append((told, json.loads(result.read_text())["metrics"]))
    assert found[0] == found[1]
    figures = found[0][1]
    assert figures["test/epochs"] > 0
    assert figures["test/searched"] == figures["test/sub_policies"] == 0


def test_a_game_goes_by_the_wall_clock_unless_another_is_asked_for():
    network = torch.nn.Identity()
    assert Budget().clock_of(network) is time.monotonic
    assert Budget(clock="cpu").clock_of(network) is time.process_time
    passes = Budget(clock="passes", pass_s=0.5).clock_of(network)
    network(torch.zeros(1))
    copy.deepcopy(network)(torch.zeros(1))
    assert passes() == 1.0


def test_entries_may_differ_in_their_data(script, tmp_path):
    other = (
        "{few: {name: fashion_mnist_sample, train_size: 60, test_size: 20, classes: [Bag, Coat]}}"
    )
    settings = config(script, "comparison.over=data", f"comparison.rivals={other}")
    here.run(script, "autoclint", settings, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {row["label"] for row in results} == {"few", "fashion_mnist_sample"}


def test_several_workers_of_a_game_are_refused(script):
    with pytest.raises(ValueError, match="one process plays a game"):
        script["prepare"](config(script, "resources.game.workers=2"))


def test_a_game_that_ends_before_its_reserve_is_refused(script):
    rivals = "comparison.rivals={official: {name: autoclint}}"
    with pytest.raises(ValueError, match=r"reserve_s: 180\.0, must be below budget\.seconds, 0\.6"):
        script["prepare"](config(script, rivals))
    script["prepare"](config(script, rivals, "budget.seconds=181"))


def test_given_weights_are_taken_where_they_fit():
    shape = {"classes": 4, "channels": 1, "video": False}
    given = {
        name: torch.full_like(value, 0.5)
        for name, value in anytime_network(CONFIG, None, **shape).backbone.state_dict().items()
    }
    given["0.weight"] = torch.zeros(1)  # of another shape
    network = anytime_network(CONFIG, given, **shape)
    state = network.backbone.state_dict()
    assert np.allclose(state["1.weight"], 0.5)
    assert not np.allclose(state["0.weight"].detach(), 0.5)
