"""The search for an architecture: what it leaves, with holes, stopped, and taken elsewhere."""

import json
import runpy

import here
import pytest
import running
import torch

from raykb.nas.genotype import Genotype
from raykb.runtime import work
from raykb.runtime.session import Refused
from raykb.runtime.studies import SearchError

SCRIPT = running.PIPELINES / "nas_search.py"
DEFAULT = running.PIPELINES / "configs" / "nas" / "scnas_phantoms.yaml"
SHORT = ["supernet.save_every=1", "retraining.save_every=1", "beside.random=1"]


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    return runpy.run_path(str(SCRIPT))


def resolved(script, *overrides):
    return here.resolved(script, DEFAULT, *SHORT, *overrides)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def labels(folder):
    return [row["label"] for row in results(folder)["results"]]


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return here.run(script, "nas_search", resolved(script), folder), folder


def test_searches_and_retrainings_are_children_with_their_genotypes(whole):
    session, folder = whole
    found = json.loads((folder / "genotypes.json").read_text())["genotypes"]
    assert {*found} == {"two_path_0", "two_path_1", "golden", "random_0"}
    searches = [run for name, run in session.tracker.runs.items() if "/search/" in name]
    assert [run.given["seed_number"] for run in searches] == [0, 1]
    histories = [run.history() for run in searches]
    assert all(len(history["valid/dice"]) == 3 for history in histories)  # two epochs, and the end
    assert {"valid/search/entropy_reduction", "valid/search/genotype"} <= histories[0].keys()
    for label, told in found.items():
        genotype = Genotype.from_json((folder / "genotypes" / f"{label}.json").read_text())
        assert genotype == Genotype(**told["cells"])
        assert told["found_by"] == ([label] if "two_path" in label else [])
        child = next(n for n in session.tracker.runs if f"/{label}-{genotype.hash}/" in n)
        own = session.tracker.runs[child].given
        assert own["model.genotype"] == str(folder / "genotypes" / f"{label}.json")
        assert own["recipe.steps"] == "2"


def test_the_best_is_chosen_by_cases_that_are_not_those_of_the_test(whole):
    _, folder = whole
    told = results(folder)
    worth = {
        row["label"]: row["test/valid/dice"]
        for row in told["results"]
        if row["label"].startswith("two_path")
    }
    assert told["subject"] == max(worth, key=worth.get)
    best = (folder / "genotype.json").read_text()
    assert best == (folder / "genotypes" / f"{told['subject']}.json").read_text()
    assert [each["label"] for each in told["searches"]] == sorted(
        worth, key=lambda name: -{e["label"]: e["valid/dice"] for e in told["searches"]}[name]
    )


def test_the_table_has_the_surface_beside_the_overlap(whole):
    _, folder = whole
    told = results(folder)
    assert [*told["tables"]] == ["test/dice", "test/nsd"]
    assert all({"test/dice", "test/nsd"} <= row.keys() for row in told["results"])
    assert "NSD %" in (folder / "results.md").read_text()


def test_no_search_has_seen_what_is_tested_on(whole):
    _, folder = whole
    seen, tested, chosen_by = set(), set(), set()
    for path in folder.rglob("details.json"):
        details = json.loads(path.read_text())
        if "genotype" in details:
            seen |= {*details["dice"]}
        else:
            tested |= {*details["dice"]}
            chosen_by |= {*details["valid"]["dice"]}
    assert seen == chosen_by
    assert len(tested) == 4
    assert not tested & seen


def test_a_genotype_that_two_searches_found_is_retrained_once(script, tmp_path):
    change = "replicas.rivals={again: {name: two_path}}"  # the same seeds, the same draws
    config = resolved(script, change, "replicas.seeds=1", "beside.golden=false")
    here.run(script, "nas_search", config, tmp_path)
    found = json.loads((tmp_path / "genotypes.json").read_text())["genotypes"]
    assert len(results(tmp_path)["searches"]) == 2
    assert {*found} == {"again_0", "random_0"}
    assert found["again_0"]["found_by"] == ["again_0", "two_path_0"]
    assert labels(tmp_path).count("two_path_0") == 0


class Stopped(BaseException):
    """What a killed run is here."""


def stopped_at(monkeypatch, name, step):
    """Have a training stop, with all of the run, as soon as it has saved a step."""
    run = work.run

    def stopping(job, *arguments, saved):
        def stop(done):
            if name in job.name and done == step:
                raise Stopped

        run(job, *arguments, saved=stop)

    monkeypatch.setattr(work, "run", stopping)


def weights(folder):
    return {
        str(path.parent.relative_to(folder)): torch.load(path, weights_only=True)
        for path in folder.rglob("final.pt")
    }


def flat(found):
    return {f"{name} {key}": value for name, own in found.items() for key, value in own.items()}


def finished(folder):
    """Return when each training that has ended wrote its result."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_stopped_and_resumed_it_ends_as_if_nothing_had_happened(
    script, whole, tmp_path, monkeypatch
):
    """It is stopped in a search, and when that has been gone on with, in a retraining."""
    phantoms = whole[1] / "phantoms"
    (tmp_path / "phantoms").symlink_to(phantoms)  # files of another time would be another task
    before = {}
    for name, step in (("search/two_path/seed-1", 3), ("retrained/golden", 1)):
        with monkeypatch.context() as patched:
            stopped_at(patched, name, step)
            with pytest.raises(Stopped):
                here.run(script, "nas_search", resolved(script), tmp_path)
        assert before.items() < finished(tmp_path).items()
        before = finished(tmp_path)
    here.run(script, "nas_search", resolved(script), tmp_path)
    assert before.items() < finished(tmp_path).items()
    assert results(tmp_path)["tables"] == results(whole[1])["tables"]
    found = [(folder / "genotypes.json").read_text() for folder in (tmp_path, whole[1])]
    assert found[0] == found[1]
    mine, other = flat(weights(tmp_path)), flat(weights(whole[1]))
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())


def test_halved_the_worst_are_stopped_and_the_others_end_as_if_nothing_was(
    script, whole, tmp_path, monkeypatch
):
    (tmp_path / "phantoms").symlink_to(whole[1] / "phantoms")
    config = resolved(script, "halving={rungs: 1, reduction_factor: 2.0}")
    with monkeypatch.context() as patched:  # and a kill at the rung changes nothing
        stopped_at(patched, "retrained/random_0", 1)
        with pytest.raises(Stopped):
            here.run(script, "nas_search", config, tmp_path)
    here.run(script, "nas_search", config, tmp_path)
    told = results(tmp_path)
    (stopped,) = told["stopped"]
    assert (stopped["steps"], stopped["seed"]) == (1, 0)
    table = [row["label"] for row in told["tables"]["test/dice"]]
    assert {*table} == {*labels(whole[1])} - {stopped["label"]}
    assert told["missing"] == []
    mine, other = flat(weights(tmp_path)), flat(weights(whole[1]))
    assert {name for name in other if name not in mine} == {
        name for name in other if f"retrained/{stopped['label']}-" in name
    }
    assert all(torch.equal(value, other[name]) for name, value in mine.items())


def failing(monkeypatch, *names):
    """Have trainings fail whose name has one of these in it."""
    run = work.run

    def broken(job, *arguments, **more):
        if any(name in job.name for name in names):
            raise FloatingPointError("loss: nan")
        run(job, *arguments, **more)

    monkeypatch.setattr(work, "run", broken)


def test_what_fails_leaves_a_hole_and_the_others_go_on(script, tmp_path, monkeypatch):
    failing(monkeypatch, "search/two_path/seed-0", "retrained/unet_3d")
    config = resolved(script, "beside.golden=false")
    session = here.run(script, "nas_search", config, tmp_path)
    assert [name.partition("/")[2] for name in session.holes] == [
        "search/two_path/seed-0",
        "retrained/unet_3d/seed-0",
    ]
    told = results(tmp_path)
    assert told["missing"] == ["unet_3d/seed-0"]
    assert told["subject"] == "two_path_1"
    assert {*labels(tmp_path)} == {"two_path_1", "random_0"}


def test_without_any_search_there_is_nothing_to_retrain(script, tmp_path, monkeypatch):
    failing(monkeypatch, "search/")
    with pytest.raises(SearchError, match="searches: none of them ended well"):
        here.run(script, "nas_search", resolved(script), tmp_path)
    assert not (tmp_path / "genotypes.json").exists()


def test_what_was_found_on_a_task_is_retrained_on_another_by_its_file(script, whole, tmp_path):
    file = whole[1] / "genotype.json"
    change = [f"model.genotype={file}", "data.tasks=[4]", "beside.golden=false"]
    config = resolved(script, *change)
    assert [phase.units for phase in script["prepare"](config).phases] == [1, 0, 3]
    here.run(script, "nas_search", config, tmp_path)
    told = results(tmp_path)
    assert (told["subject"], told["searches"]) == ("transferred", [])
    assert {*labels(tmp_path)} == {"transferred", "random_0", "unet_3d"}
    assert (tmp_path / "genotype.json").read_text() == file.read_text()


def test_retrainings_too_short_to_be_halved_are_refused(script, whole, tmp_path):
    (tmp_path / "phantoms").symlink_to(whole[1] / "phantoms")
    with pytest.raises(Refused, match=r"halving.rungs: 1, which of 2 steps come after \[0\]"):
        here.run(script, "nas_search", resolved(script, "halving.rungs=1"), tmp_path)


REFUSED = {
    "model={name: unet_3d}": "model.name: 'unet_3d', must be 'scnas': others can be rivals",
    "model.genotype=nowhere.json": "nowhere.json",
    "comparison={over: schedule, rivals: {flat: {name: constant}}}": "see replicas.over",
    "comparison.rivals={golden: {name: unet_3d}}": "'golden' is the run's own word",
    "comparison.rivals={two_path_1: {name: unet_3d}}": "'two_path_1' is the run's own word",
    "comparison.rivals={random_7: {name: unet_3d}}": "'random_7' is the run's own word",
    "replicas.label=random": "replicas.label: 'random' is the run's own word",
    "supernet.evaluate_every=0": "supernet.evaluate_every: 0, must be above 0: an epoch",
    "sampler={name: straight_through_executed}": "none",
    "search.warmup_epochs=9": "warmup_epochs: 9, of 2 steps each, must end before the 4",
    "data.tasks=[11]": "tasks: 11, must be of 1..10",
    "data.tasks=[1, 4]": "data.tasks: 2 of them, must be one",
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_run_that_cannot_be_is_refused(script, change):
    with pytest.raises(ValueError, match="problem") as refused:
        script["prepare"](resolved(script, change))
    assert REFUSED[change] in str(refused.value)


def test_replicas_may_differ_in_anything_else_than_their_sampler(script):
    config = resolved(
        script,
        "replicas={over: search, label: slow, rivals: {fast: {warmup_epochs: 1, alpha_lr: 0.1}}}",
    )
    assert [phase.units for phase in script["prepare"](config).phases][1] == 2
