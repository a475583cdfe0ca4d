"""The search: deterministic, resumable from its ledger, and not to be stopped by bad candidates."""

import json
import math
import os
import signal
import sys
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray

from raykb.runtime import searcher, tune
from raykb.runtime.open_study import OpenStudy, sampler
from raykb.runtime.resources import WorkerResources
from raykb.runtime.searcher import StudySearcher
from raykb.runtime.storage import LocalStorage
from raykb.runtime.studies import LEDGER, Candidate, Halving, LedgerError, SearchError, Study
from raykb.runtime.tune import search
from raykb.runtime.watch import Limits, hangs

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

SPACE = {"x": (0.0, 1.0), "colour": ("red", "green", "blue")}
STUDIES = [
    Study(f"split-{split}/round-{turn}", f"split-{split}", 10 * split + turn, {"split": split})
    for split in range(2)
    for turn in range(2)
]


class Parabola:
    """The reward is highest at x = 0.3 and red; ``faults`` maps a candidate to what goes wrong.

    In ``marks`` is a file for each time that a candidate was scored.
    """

    def __init__(self, faults=None, marks=None):
        self.faults, self.marks = faults or {}, marks

    def setup(self, values):
        self.total = float(values.sum())

    def score(self, candidate, budget):
        fault = self.faults.get((candidate["study"], candidate["number"]))
        if self.marks:
            again = [*Path(self.marks).glob(f"{candidate['number']}-*")]
            Path(self.marks, f"{candidate['number']}-{time.time_ns()}").touch()
            if again and fault in ("kill once", "loop once"):
                fault = None
        if fault == "raise":
            self.total = math.nan  # spoilt for the next one, unless that has a new score
            raise RuntimeError("this candidate is out of memory")
        if fault == "nothing":
            return None
        if fault == "die":
            os._exit(1)
        if fault == "kill once":
            os.kill(os.getpid(), signal.SIGKILL)
        while fault == "loop once":
            pass
        params = candidate["params"]
        reward = -((params["x"] - 0.3) ** 2) - 0.1 * (params["colour"] != "red")
        reward = math.nan if fault == "nan" else reward
        return {"reward": reward, "total": self.total, "budget": float(budget)}


def run(folder, *, score=None, width=5, studies=STUDIES, told=None, parallel=1, **arguments):
    return search(
        studies,
        space=SPACE,
        width=width,
        score=score or Parabola(),
        shared={"values": np.arange(4)},
        storage=LocalStorage(folder),
        resources=WorkerResources(),
        parallel=parallel,
        on_told=(told if told is not None else []).append,
        **arguments,
    )


def summary(candidates):
    return [(c.study.name, c.number, c.params, c.status, c.figures, c.rungs) for c in candidates]


def cut(folder, lines):
    """Make the ledger what it was when a crash came after so many records."""
    ledger = folder / LEDGER
    kept = ledger.read_text().splitlines(keepends=True)[:lines]
    ledger.write_text("".join(kept))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, local_ray):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, parallel=2)


def test_every_study_has_its_width_and_its_own_candidates(whole):
    _, candidates = whole
    assert Counter(c.study.name for c in candidates) == {s.name: 5 for s in STUDIES}
    assert all(c.status == "finished" for c in candidates)
    assert all(c.figures["total"] == 6.0 for c in candidates)
    assert len({c.params["x"] for c in candidates}) == len(candidates)


def test_rounds_of_a_split_follow_each_other_with_one_candidate_in_flight(whole):
    folder, _ = whole
    for group in ("split-0", "split-1"):
        events = [
            (record["study"], record["event"])
            for record in LocalStorage(folder).records(LEDGER)
            if record.get("study", "").startswith(group)
        ]
        wanted = [(f"{group}/round-{turn}", e) for turn in (0, 1) for _ in range(5) for e in "at"]
        assert [(study, event[0]) for study, event in events] == wanted


@pytest.mark.parametrize(
    "lines", [30, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 9, 20, 41))]
)
def test_resumed_anywhere_it_is_the_uninterrupted_search(whole, tmp_path, lines):
    """With fewer evaluators, too: a study asks one after the other."""
    folder, candidates = whole
    (tmp_path / LEDGER).write_text((folder / LEDGER).read_text())
    cut(tmp_path, lines)
    done = sum('"told"' in line for line in (tmp_path / LEDGER).read_text().splitlines())
    told = []
    assert summary(run(tmp_path, told=told)) == summary(candidates)
    assert len(told) == len(candidates)
    scored = [r for r in LocalStorage(tmp_path).records(LEDGER) if r["event"] == "told"]
    assert len(scored) == len(candidates)
    assert [c.number for c in told[:done]] == [c.number for c in told[:done] if c.status != "asked"]


def test_a_finished_search_is_only_read(whole):
    folder, candidates = whole
    before = (folder / LEDGER).read_text()
    assert summary(run(folder)) == summary(candidates)
    assert (folder / LEDGER).read_text() == before


@pytest.mark.parametrize("change", ["params", "seed"])
def test_a_ledger_of_another_search_is_refused(whole, tmp_path, change):
    folder, _ = whole
    lines = (folder / LEDGER).read_text().splitlines()
    studies = STUDIES
    if change == "params":
        place = next(i for i, line in enumerate(lines) if '"asked"' in line)
        record = json.loads(lines[place])
        record["params"]["x"] += 1e-9
        lines[place] = json.dumps(record)
    else:
        studies = [Study(s.name, s.group, s.seed + 1, s.fields) for s in STUDIES]
    (tmp_path / LEDGER).write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match=r"candidate 0 is suggested as .* the ledger has"):
        run(tmp_path, studies=studies)


ILL = {
    "split-0/round-0": {
        1: ("raise", "RuntimeError: this candidate is out of memory"),
        2: ("nothing", "ValueError: score: None, must be figures by name, a 'reward' among them"),
        3: ("nan", "not finite"),
    },
    "split-1/round-0": {4: ("die", "")},  # the last one: nobody is needed after it
}


@pytest.mark.parametrize(
    "name", ["split-0/round-0", pytest.param("split-1/round-0", marks=pytest.mark.slow)]
)
def test_a_bad_candidate_is_told_once_and_the_search_goes_on_as_without_it(whole, tmp_path, name):
    faults = {(name, number): fault for number, (fault, _) in ILL[name].items()}
    studies = [study for study in STUDIES if study.name == name]
    (tmp_path / "marks").mkdir()
    score = Parabola(faults, str(tmp_path / "marks"))
    candidates = run(tmp_path, score=score, studies=studies, retries=1)
    failed = {c.number: c.error for c in candidates if c.status == "failed"}
    assert failed.keys() == ILL[name].keys()
    assert all(error in failed[number] for number, (_, error) in ILL[name].items())
    well = [each for each in summary(candidates) if each[3] == "finished"]
    assert len(well) == 5 - len(failed)
    assert all(each in summary(whole[1]) for each in well)
    scored = Counter(int(mark.name.split("-")[0]) for mark in (tmp_path / "marks").iterdir())
    lost = {number for number, fault in ILL[name].items() if fault[0] == "die"}
    assert scored == {number: 2 if number in lost else 1 for number in range(5)}
    told = [r for r in LocalStorage(tmp_path).records(LEDGER) if r["event"] == "told"]
    assert len(told) == 5
    again = run(tmp_path, studies=studies)  # nothing is scored again, what failed stays failed
    assert [(c.params, c.status, c.error) for c in again] == [
        (c.params, c.status, c.error) for c in candidates
    ]
    assert len(list(LocalStorage(tmp_path).records(LEDGER))) == 11


@pytest.mark.slow
def test_evaluators_that_are_killed_once_or_hang_once_change_nothing(whole, tmp_path):
    (tmp_path / "marks").mkdir()
    study = STUDIES[1]
    faults = {(study.name, 1): "kill once", (study.name, 3): "loop once"}
    score = Parabola(faults, str(tmp_path / "marks"))
    limits = Limits(times=2.0, least_s=2.0, first_s=120.0)
    candidates = run(tmp_path, score=score, studies=[study], limits=limits)
    scored = Counter(int(mark.name.split("-")[0]) for mark in (tmp_path / "marks").iterdir())
    assert scored == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1}
    assert summary(candidates) == [each for each in summary(whole[1]) if each[0] == study.name]
    (told,) = hangs(LocalStorage(tmp_path), tune.SEARCH)
    assert f"hung at {study.name}, candidate 3 (usually " in told
    assert "in score" in told


HALVED = {"parts": 4, "halving": Halving(), "width": 8, "studies": STUDIES[::2]}


@pytest.fixture(scope="module")
def halved(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("halved")
    return folder, run(folder, **HALVED)


def test_halving_stops_candidates_early(halved):
    _, candidates = halved
    counts = Counter(c.status for c in candidates)
    assert counts["stopped"] > 0
    assert counts["finished"] > 0
    for candidate in candidates:
        assert candidate.figures["budget"] == len(candidate.rungs)
        assert (len(candidate.rungs) == 4) == (candidate.status == "finished")


@pytest.mark.slow  # to resume is above, and to take up where halving was is below
def test_halved_and_resumed_it_is_the_uninterrupted_search(halved, tmp_path):
    folder, candidates = halved
    (tmp_path / LEDGER).write_text((folder / LEDGER).read_text())
    cut(tmp_path, 20)
    assert summary(run(tmp_path, **HALVED)) == summary(candidates)


def judged(scheduler, study, number, rewards):
    """Return a candidate of a study as a scheduler lets it get along."""
    trial = types.SimpleNamespace(trial_id=str(number), config={"study": study.name})
    scheduler.on_trial_add(None, trial)
    for part in range(1, 1 + len(rewards)):
        result = {"part": part, "reward": rewards[part - 1]}
        if scheduler.on_trial_result(None, trial, result) == "STOP":
            break
    status = "finished" if part == len(rewards) else "stopped"
    return Candidate(study, number, {}, status, rungs=list(rewards[:part]))


def test_halving_that_takes_in_earlier_candidates_judges_as_if_it_had_seen_them():
    rewards = np.random.default_rng(0).random((2, 24, 4))
    whole, resumed, fresh = (tune._HalvingByStudy(Halving(), 4) for _ in range(3))

    def judge(scheduler, numbers):
        return [
            judged(scheduler, study, number, rewards[place, number])
            for number in numbers
            for place, study in enumerate(STUDIES[:2])
        ]

    resumed.replay(judge(whole, range(12)))
    later = judge(whole, range(12, 24))
    assert judge(resumed, range(12, 24)) == later
    assert judge(fresh, range(12, 24)) != later


def test_evaluators_that_never_work_end_the_search_with_their_error(local_ray, tmp_path):
    class Broken(Parabola):
        def setup(self, values):
            raise ImportError("no such theta")

    found = r"no candidate could be scored; the first 4 failed, with: ImportError: no such theta$"
    with pytest.raises(SearchError, match=found):
        run(tmp_path, score=Broken())


def open_studies(width=4, per_group=1, studies=STUDIES, max_failed=None, parallel=99):
    opened = [OpenStudy(study, space=SPACE, width=width, sampler_name="tpe") for study in studies]
    records = []
    return (
        opened,
        records,
        StudySearcher(
            opened,
            per_group=per_group,
            parallel=lambda: parallel,
            max_failed=max_failed,
            record=records.append,
            on_told=lambda candidate: None,
        ),
    )


@pytest.mark.parametrize("per_group", [1, 3])
def test_no_group_has_more_in_flight_than_it_may(per_group):
    _, _, searcher = open_studies(per_group=per_group)
    asked = [searcher.suggest(f"trial-{n}") for n in range(2 * per_group)]
    assert Counter(config["study"] for config in asked) == {
        "split-0/round-0": per_group,
        "split-1/round-0": per_group,
    }
    assert searcher.suggest("one-too-many") is None


def test_no_more_are_in_flight_than_the_cluster_has_places_for():
    _, _, searcher = open_studies(per_group=3, parallel=2)
    assert all(searcher.suggest(f"trial-{number}")["params"] for number in range(2))
    assert searcher.suggest("one-too-many") is None
    searcher.on_trial_complete("trial-0", error=True)
    assert searcher.suggest("the next")["params"]


def test_a_candidate_that_is_scored_part_by_part_stays_in_flight_until_the_end():
    study, records, searcher = open_studies(studies=STUDIES[:1])
    searcher.suggest("a")
    part = {"parts": 3, "reward": 0.5, "figures/reward": 0.5}
    searcher.on_trial_result("a", part | {"part": 1})
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a", part | {"part": 2})
    assert study[0].candidates[0].status == "stopped"
    assert records[-1]["rungs"] == [0.5, 0.5]
    assert searcher.suggest("b")["number"] == 1


def test_the_searcher_finishes_when_all_is_asked():
    _, records, searcher = open_studies(width=1, studies=STUDIES[:1])
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"part": 1, "parts": 1, "reward": 0.5, "figures/reward": 0.5})
    assert searcher.suggest("b") == "FINISHED"
    assert [record["event"] for record in records] == ["asked", "told"]
    assert records[1]["figures"] == {"reward": 0.5}


def test_a_search_is_hopeless_when_the_first_candidates_fail_one_and_all():
    _, _, failing = open_studies(per_group=3)
    for number in range(searcher._HOPELESS):
        assert not failing.hopeless
        assert failing.suggest(f"trial-{number}")["params"]
        failing.on_trial_complete(f"trial-{number}", error=True)
    assert failing.hopeless
    assert failing.failures == ["the evaluator failed"] * searcher._HOPELESS
    assert failing.suggest("one more") == "FINISHED"


def test_one_candidate_that_is_scored_is_hope_enough():
    _, _, hopeful = open_studies(per_group=3)
    scored = {"part": 1, "parts": 1, "reward": 0.5, "figures/reward": 0.5}
    for number in range(searcher._HOPELESS + 1):
        hopeful.suggest(f"trial-{number}")
        hopeful.on_trial_complete(f"trial-{number}", scored if not number else None)
    assert not hopeful.hopeless
    assert hopeful.suggest("one more")["params"]


def test_a_search_ends_when_more_candidates_fail_than_may_and_says_why():
    _, records, failing = open_studies(per_group=4, max_failed=1)
    scored = {"part": 1, "parts": 1, "reward": 0.5, "figures/reward": 0.5}
    broken = {"part": 1, "parts": 1, "reward": math.nan, "error": "ValueError: too dark"}
    for number, result in enumerate([scored, broken, None]):
        assert not failing.over
        failing.refuse()
        assert failing.suggest(f"trial-{number}")["params"]
        failing.on_trial_complete(f"trial-{number}", result)
    assert failing.suggest("one more") == "FINISHED"
    assert [record["status"] for record in records if record["event"] == "told"] == [
        "finished",
        "failed",
        "failed",
    ]
    found = "^2 candidates failed, 1 may .*, with: ValueError: too dark; the evaluator failed$"
    with pytest.raises(SearchError, match=found):
        failing.refuse()


def test_tpe_learns_where_the_good_candidates_are():
    def search_with(name):
        study = OpenStudy(STUDIES[0], space=SPACE, width=80, sampler_name=name)
        score = Parabola()
        score.setup(np.zeros(1))
        for _ in range(80):
            candidate, _ = study.ask()
            fields = {"study": STUDIES[0].name, "number": candidate.number}
            candidate.figures = score.score(fields | {"params": candidate.params}, 1)
            candidate.status = "finished"
            study.tell(candidate)
        return np.mean([c.figures["reward"] for c in study.candidates[-30:]])

    assert search_with("tpe") > search_with("random") + 0.03


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="sampler: 'grid', must be 'tpe' or 'random'"):
        sampler("grid", 0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"grace_parts": 0}, "grace_parts: 0, must be at least 1"),
        ({"reduction_factor": 1.0}, r"reduction_factor: 1\.0, must be above 1"),
    ],
)
def test_halving_that_halves_nothing_is_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        Halving(**arguments)
