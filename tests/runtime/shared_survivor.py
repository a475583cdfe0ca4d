"""A run of trainings and a search that is slow enough to be killed, as a script and for the tests.

Whoever works leaves a file ``<marks>/<process>-<what>``, so that the tests see how far the run is
and which of Ray's processes is at work.
"""

import dataclasses
import json
import os
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import shared_training

from raykb.comparison import Comparison
from raykb.config import Section, Value, build
from raykb.runtime.job import launch
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.studies import Study
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

CONFIG = """
storage: runs
tracking: {uri: null}
method: {name: plain}
comparison: {seeds: 1, rivals: {other: {name: plain}}}
marks: ''
pause_s: 0.1
"""
STUDIES = [Study(f"split-{n}/round-0", f"split-{n}", n, {"split": n}) for n in range(2)]
WIDTH = 5
SPACE = {"x": (0.0, 1.0), "colour": ("red", "green", "blue")}
MARKS = 2 * shared_training.STEPS + len(STUDIES) * WIDTH
"""Of a run to which nothing happens."""


@dataclass(frozen=True)
class Plain:
    """The method, which has no settings."""


SCHEMA = {
    "method": {"plain": Plain},
    "comparison": Section(Comparison, rows={"rivals": "over"}),
    "marks": Value(str, ""),
    "pause_s": Value(float, 0.0),
}


def mark(marks, pause_s, what):
    """Say that this process does something, which takes a while."""
    if marks:
        Path(marks, f"{os.getpid()}-{what}").touch()
    time.sleep(pause_s)


def training(worker, *, name, marks, pause_s):
    """A tiny training whose figures depend on its seed alone."""
    whole = shared_training.build(worker)

    def batches(start):
        for step, batch in enumerate(whole.batches(start), start):
            mark(marks, pause_s, f"{name}-{step}")
            yield batch * (1.5 if name == "other" else 1.0)

    return dataclasses.replace(whole, batches=batches, save_every=3)


class Parabola:
    """The reward is highest at x = 0.3 and red."""

    def __init__(self, marks, pause_s):
        self._marks, self._pause_s = marks, pause_s

    def setup(self, values):
        self._total = float(values.sum())

    def score(self, candidate, budget):
        mark(self._marks, 2 * self._pause_s, f"{candidate['study'][:7]}-{candidate['number']}")
        x, colour = candidate["params"]["x"], candidate["params"]["colour"]
        return {"reward": -((x - 0.3) ** 2) - 0.1 * (colour != "red"), "total": self._total}


def prepare(config):
    comparison = build(Comparison, config["comparison"])
    each = WorkerResources()
    phases = [Phase("trainings", 2, each), Phase("search", len(STUDIES), each)]
    return types.SimpleNamespace(comparison=comparison, phases=phases)


def survive(session, ready):
    """Train, search and tell."""
    comparison, config = ready.comparison, session.config
    given = {"marks": config["marks"], "pause_s": config["pause_s"]}
    jobs = [
        (entry, TrainJob(entry.name, training, {"name": entry.label} | given, entry.seed))
        for entry in comparison.trainings(config)
    ]
    results = session.compare("trainings", comparison, jobs)
    found = session.search(
        "search",
        studies=STUDIES,
        width=WIDTH,
        space=SPACE,
        score=Parabola(**given),
        shared={"values": np.arange(4)},
        resources=WorkerResources(),
        sampler_name="tpe",
        parts=1,
    )
    rows = [{"label": e.label, "seed": e.number} | result.metrics for e, result in results]
    session.tell(comparison, rows, ["test/weight"])
    told = [[c.study.name, c.number, c.params, c.status, c.figures] for c in found]
    session.write("candidates.json", json.dumps(told))


def main():
    """Run from the command line, as a script does."""
    return launch(
        survive,
        description=__doc__,
        default=Path("config.yaml"),
        schema=SCHEMA,
        prepare=prepare,
    )


if __name__ == "__main__":
    sys.exit(main())
