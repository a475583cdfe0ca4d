"""A run whose comparison goes on when a training fails, on one Ray and one MLflow store."""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch
from databases import new_database
from mlflow import MlflowClient
from torch import nn

from raykb.comparison import Comparison
from raykb.config import Section, Value, build
from raykb.engine.loop import Evaluated, Training
from raykb.engine.seeding import generator
from raykb.runtime.checking import check
from raykb.runtime.job import EXIT_HOLES, launch
from raykb.runtime.left import uri_of
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.storage import LocalStorage
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:sqlalchemy.exc.SADeprecationWarning",
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning",
)
STEPS = 8
CONFIG = """
storage: runs
tracking: {uri: "DATABASE"}
method: {name: scaled, factor: 2.0}
comparison: {seeds: 2, on_failure: hole, rivals: {plain: {name: scaled}}}
"""


@dataclass(frozen=True)
class Scaled:
    """The method: a factor of the loss."""

    factor: float = 1.0


def training(worker, *, config, seed, cured):
    """Fit a line; that of the run's own method, seed 1, has no finite loss until it is cured."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    factor = build({"scaled": Scaled}, config["method"]).factor
    ill = factor == 2.0 and seed == config["ill"] and not Path(cured).exists()

    def step(batch, number):
        loss = factor * model(batch).square().mean() * (float("nan") if ill and number > 4 else 1)
        loss.backward()
        return {"loss": loss.detach()}

    def update(number):
        optimizer.step()
        optimizer.zero_grad()
        return {}

    def evaluate(split):
        weight = float(model.weight.detach().norm())
        return Evaluated({f"{split}/norm": weight}, {"confusion": [[1, 2], [3, 4]]})

    return Training(
        step=step,
        update=update,
        batches=lambda start: (
            torch.randn(4, 3, generator=generator(seed, "step", number))
            for number in range(start, STEPS)
        ),
        steps=STEPS,
        parts={"model": model, "optimizer": optimizer},
        evaluate=evaluate,
        save_every=2,
        log_every=4,
        evaluate_every=4,
    )


def prepare(config):
    comparison = build(Comparison, config["comparison"])
    count = len(comparison.trainings(config))
    phases = [Phase("trainings", count, WorkerResources())]
    return types.SimpleNamespace(comparison=comparison, phases=phases)


@pytest.fixture(scope="module")
def launched(local_ray, tmp_path_factory):
    """Two invocations: with one training of four that fails, and gone on with once it is cured."""
    folder = tmp_path_factory.mktemp("holes")
    uri = new_database(folder)
    (folder / "config.yaml").write_text(CONFIG.replace("DATABASE", uri))
    run, cured = folder / "run", folder / "cured"
    client = MlflowClient(uri)

    def script(session, ready):
        ill = ready.comparison.seeds_of(session.config)[1]
        jobs = [
            (
                entry,
                TrainJob(
                    entry.name,
                    training,
                    {"config": entry.config | {"ill": ill}, "seed": entry.seed}
                    | {"cured": str(cured)},
                    entry.seed,
                ),
            )
            for entry in ready.comparison.trainings(session.config)
        ]
        told = session.compare("trainings", ready.comparison, jobs)
        rows = [{"label": e.label, "seed": e.number} | result.metrics for e, result in told]
        session.tell(ready.comparison, rows, ["test/norm"], about={"holes": session.holes})

    def invoke(*arguments):
        schema = {
            "seed": Value(int, 0),
            "method": {"scaled": Scaled},
            "comparison": Section(Comparison, rows={"rivals": "over"}),
        }
        status = launch(
            script,
            description="",
            default=folder / "config.yaml",
            schema=schema,
            prepare=prepare,
            argv=list(map(str, arguments)),
        )
        (experiment,) = [e for e in client.search_experiments() if e.name == "raykb"]
        runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
        table = (run / "results.md").read_text()
        results = json.loads((run / "results.json").read_text())
        return types.SimpleNamespace(status=status, runs=runs, table=table, results=results)

    first = invoke("--out", run)
    wrong = client.download_artifacts(first.runs["scaled/seed-1"].info.run_id, "error.txt")
    first.error = Path(wrong).read_text()
    written = {path: path.stat().st_mtime_ns for path in run.glob("*/*/result.json")}
    cured.touch()
    again = invoke("--resume", run)
    again.kept = {path: path.stat().st_mtime_ns for path in written} == written
    return types.SimpleNamespace(first=first, again=again, client=client, run=run)


def test_one_training_that_fails_costs_one_cell_and_the_status_says_so(launched):
    first = launched.first
    assert first.status == EXIT_HOLES == 3
    assert first.results["missing"] == first.results["holes"] == ["scaled/seed-1"]
    assert "1 of 4 trainings has no result: scaled/seed-1" in first.table
    counts = {row["label"]: row["seeds"] for row in first.results["tables"]["test/norm"]}
    assert counts == {"plain": 2, "scaled": 1}


def test_the_tracker_has_its_own_exception_and_the_others_as_they_ended(launched):
    statuses = {name: run.info.status for name, run in launched.first.runs.items()}
    assert statuses == {
        "run": "FINISHED",
        "plain/seed-0": "FINISHED",
        "plain/seed-1": "FINISHED",
        "scaled/seed-0": "FINISHED",
        "scaled/seed-1": "FAILED",
    }
    assert "FloatingPointError: loss: nan within the 4 steps up to 6" in launched.first.error
    assert "training 'scaled/seed-1', rank 0" in launched.first.error


def test_gone_on_with_it_is_trained_again_alone(launched):
    again = launched.again
    assert again.status == 0
    assert again.kept
    assert (again.results["missing"], again.results["holes"]) == ([], [])
    assert "no result" not in again.table
    assert again.runs["scaled/seed-1"].info.status == "FINISHED"
    found = again.runs["scaled/seed-1"].data.metrics
    assert found["test/norm"] == again.results["results"][3]["test/norm"]
    left = LocalStorage(launched.run)
    assert check(left, tracking_uri=uri_of(left)) == []


def test_a_run_is_tracked_with_its_own_config_and_what_was_found_on_the_way(launched):
    plain = launched.first.runs["plain/seed-1"]
    assert plain.data.params["method.factor"] == "1.0"
    assert launched.first.runs["scaled/seed-0"].data.params["method.factor"] == "2.0"
    assert (plain.data.params["label"], plain.data.params["seed_number"]) == ("plain", "1")
    history = launched.client.get_metric_history(plain.info.run_id, "valid/norm")
    assert [point.step for point in history] == [4, 8]
    assert history[-1].value == plain.data.metrics["test/norm"]
    details = json.loads((launched.run / "plain" / "seed-1" / "details.json").read_text())
    assert details == {"confusion": [[1, 2], [3, 4]]}
