"""What a session does for a script, with all work in this process."""

import functools
import json
import math

import here
import pytest
import torch
from torch import nn

from raykb.comparison import Comparison
from raykb.engine.loop import Evaluated, Training
from raykb.runtime.comparison_run import ComparisonRun
from raykb.runtime.resources import WorkerResources
from raykb.runtime.session import Refused, rows_of
from raykb.runtime.work import TrainJob

CONFIG = {"seed": 3, "method": {"name": "own", "factor": 2.0}}


@pytest.fixture
def opened(tmp_path):
    """Return a session on the run directory; on the same one each time."""

    def open_session(config=CONFIG):
        script = {"prepare": lambda config: None, "begin": lambda session, ready: None}
        return here.run(script, "begin", config, tmp_path)

    return open_session


def training(worker, *, factor):
    """A training of one weight without steps to it; a factor of nan is a loss of nan."""
    model = nn.Linear(1, 1)
    return Training(
        step=lambda batch, number: {"loss": torch.tensor(factor)},
        update=lambda step: {},
        batches=lambda start: iter([None]),
        steps=1,
        parts={"model": model},
        evaluate=lambda split: Evaluated({f"{split}/top1": factor / 4}),
        log_every=1,
    )


def jobs(comparison, config):
    return [
        (entry, TrainJob(entry.name, training, {"factor": entry.config["method"]["factor"]}, 0))
        for entry in comparison.trainings(config)
    ]


FOUND = {"half": 0.25, "own": 0.5}
COMPARED = functools.partial(
    Comparison, rivals={"half": {"name": "own", "factor": 1.0}, "ill": {"factor": math.nan}}
)


def test_a_training_leaves_its_own_configuration_without_secrets_and_others_none(opened, tmp_path):
    config = CONFIG | {"data": {"password": "abc"}}
    comparison = Comparison(rivals={"half": {"name": "own", "factor": 1.0}})
    session = opened(config)
    session.compare("trainings", comparison, jobs(comparison, config))
    session.train("alone", [TrainJob("alone", training, {"factor": 1.0}, 0)])
    left = {path.parent.parent.name: path for path in tmp_path.rglob("config.json")}
    assert left.keys() == {"half", "own"}
    factors = {"half": 1.0, "own": 2.0}
    for label, path in left.items():
        own = config | {"method": {"name": "own", "factor": factors[label]}}
        assert json.loads(path.read_text()) == own | {"data": {"password": "***"}}
    assert {path.parent.name for path in tmp_path.rglob("final.pt")} == {"alone", "seed-0"}


def test_a_file_stays_as_the_run_began_with_it(opened):
    assert opened().keep("notes.txt", "first") == "first"
    again = opened()
    assert again.keep("notes.txt", "second") == "first"
    assert again.written == []


def test_what_a_section_names_and_is_not_there_is_refused_under_its_name(opened):
    with pytest.raises(Refused, match="data: no such folder"), opened().reading("data"):
        raise FileNotFoundError("no such folder")
    with pytest.raises(KeyError), opened().reading("data"):
        raise KeyError("a bug")


def test_a_comparison_runs_each_entry_under_its_own_config(opened):
    session, comparison = opened(), Comparison(rivals={"half": {"name": "own", "factor": 1.0}})
    found = session.compare("trainings", comparison, jobs(comparison, CONFIG))
    assert [(e.label, r.metrics["test/top1"]) for e, r in found] == [("half", 0.25), ("own", 0.5)]
    runs = session.tracker.runs
    assert runs["half/seed-0"].given["method.factor"] == "1.0"
    assert runs["own/seed-0"].given["method.factor"] == "2.0"
    logged = runs["own/seed-0"].history()
    assert {"test/top1", "time/wall_s", "time/cpu_s", "memory/peak_mib"} <= logged.keys()
    told = {name: runs["own/seed-0"].given[name] for name in ("label", "seed_number")}
    assert told == {"label": "own", "seed_number": 0}
    assert {run.status for name, run in runs.items() if name != "parent"} == {"FINISHED"}


def test_the_job_of_an_entry_is_told_config_and_seed_of_it():
    (entry,) = Comparison().trainings(CONFIG)
    job = TrainJob.of(entry, training, WorkerResources(cpus=2), name="final/own", factor=1.0)
    assert job.arguments == {"config": entry.config, "seed": entry.seed, "factor": 1.0}
    assert (job.name, job.seed, job.resources.cpus) == ("final/own", entry.seed, 2)
    assert TrainJob.of(entry, training, WorkerResources()).name == "own/seed-0"


def test_a_comparison_says_whether_a_failure_stops_it_or_leaves_a_hole(opened):
    comparison = COMPARED()
    with pytest.raises(FloatingPointError, match="loss: nan"):
        opened().compare("trainings", comparison, jobs(comparison, CONFIG))
    session, comparison = opened(), COMPARED(on_failure="hole")
    found = session.compare("trainings", comparison, jobs(comparison, CONFIG))
    assert [entry.label for entry, _ in found] == ["half", "own"]
    assert session.holes == ["ill/seed-0"]
    failed = session.tracker.runs["ill/seed-0"]
    assert (failed.status, set(failed.texts)) == ("FAILED", {"error.txt"})
    assert "FloatingPointError: loss: nan" in failed.texts["error.txt"]


def test_all_of_trainings_are_asked_for_or_none(opened):
    ill = TrainJob("ill", training, {"factor": math.nan}, 0)
    with pytest.raises(FloatingPointError):
        opened().train_all("trainings", [ill])
    well = TrainJob("well", training, {"factor": 1.0}, 0)
    (result,) = opened().train_all("trainings", [well])
    assert result.metrics == {"test/top1": 0.25}


def test_what_was_found_is_written_printed_and_told_to_the_tracker(opened, tmp_path, capsys):
    session, comparison = opened(), COMPARED()
    rows = [{"label": label, "seed": 0, "test/top1": top1} for label, top1 in FOUND.items()]
    session.tell(comparison, rows, ["test/top1"], about={"images": 9})
    assert session.written == ["results.json", "results.md", "comparison.png"]
    table = (tmp_path / "results.md").read_text()
    assert "1 of 3 trainings has no result: ill/seed-0" in table
    assert table in capsys.readouterr().out
    assert session.parent.noted == table.strip()
    assert '"images": 9' in (tmp_path / "results.json").read_text()
    means = {f"test/top1/{label}": top1 for label, top1 in FOUND.items()}
    assert session.parent.points == [(0, means | {"test/top1": FOUND["own"]})]


class Counted:
    """Knows how often it was made, by its record."""

    def __init__(self, step, record, threads):
        self.count = step + int(record or 0)
        self.threads = threads

    def record(self):
        return str(self.count)


def test_what_is_renewed_goes_on_from_its_record(opened):
    each = WorkerResources(cpus=2)
    made = [opened().renewed("count.txt", Counted, 3, each=each) for _ in range(2)]
    assert [(own.count, own.threads) for own in made] == [(3, 2), (6, 2)]
    assert opened().storage.read("count.txt") == b"6"


def test_a_run_that_is_one_comparison_plans_and_trains_its_entries(opened):
    section = {"rivals": {"half": {"name": "own", "factor": 1.0}}, "seeds": 2}
    config = CONFIG | {"comparison": section, "resources": {"training": {"side_by_side": 2}}}
    run = ComparisonRun.of(config, "data", beside={"data workers": WorkerResources()})
    (phase,) = run.phases
    assert (phase.name, phase.units, phase.each.side_by_side) == ("trainings", 4, 2)
    assert phase.beside == {"data workers": WorkerResources()}

    def job(entry):
        return TrainJob(entry.name, training, {"factor": entry.config["method"]["factor"]}, 0)

    results = run.train(opened(config), job)
    assert rows_of(results) == [
        {"label": label, "seed": seed, "steps": 1, "test/top1": FOUND[label]}
        for seed in (0, 1)
        for label in ("half", "own")
    ]


def test_the_phase_and_resources_of_a_comparison_may_have_other_names():
    config = CONFIG | {"comparison": {}, "resources": {"game": {"cpus": 3}}}
    run = ComparisonRun.of(config, None, name="games", resources="game")
    assert (run.phase.name, run.each.cpus) == ("games", 3)
