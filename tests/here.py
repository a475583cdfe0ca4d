"""A session that does all work in this process: neither Ray nor MLflow, and a second a run.

It trains by the very code of a worker (``raykb.runtime.work``), so checkpoints, results and weights
are those of a run on Ray, and gone on with if they are there.
"""

import collections
import types
from pathlib import Path

from raykb import config as configuration
from raykb.config import Value
from raykb.engine.loop import Worker
from raykb.runtime import work
from raykb.runtime.job import Tracking
from raykb.runtime.mailbox import Letter
from raykb.runtime.open_study import OpenStudy
from raykb.runtime.session import Machine, Session
from raykb.runtime.storage import LocalStorage
from raykb.runtime.studies import LEDGER
from raykb.runtime.train import finished
from raykb.runtime.watch import Limits


class Run:
    """What the tracker would be told of a run."""

    def __init__(self, key, params):
        self.key, self.given = key, dict(params)
        self.points, self.texts, self.status = [], {}, "RUNNING"
        self.noted = ""

    def log(self, step, figures):
        self.points.append((step, dict(figures)))

    def history(self):
        found = collections.defaultdict(list)
        for step, figures in self.points:
            for name, value in figures.items():
                found[name].append((step, value))
        return dict(found)

    def params(self, values):
        self.given |= values

    def text(self, text, name):
        self.texts[name] = text

    def finish(self, status="FINISHED"):
        self.status = status

    def note(self, text):
        self.noted = text

    def tags(self, values): ...

    def view(self, by, metrics=()): ...

    def artifact(self, path, folder=""): ...


class Tracker:
    """Keeps the runs by name."""

    def __init__(self):
        self.runs = {}

    def run(self, key, *, name, parent=None, params, tags):
        return self.runs.setdefault(name, Run(key, params))

    def ready(self, timeout_s): ...


def train(jobs, *, storage, parallel, on_letter, on_result, on_failure=None, limits=None):
    """Run trainings one after the other, here."""

    def put(letter):
        if not isinstance(letter, Letter):  # else the worker would wait for Ray to have taken it
            raise LookupError("failures are raised here")
        on_letter(letter)

    mailbox = types.SimpleNamespace(put=types.SimpleNamespace(remote=put))
    results = []
    for job in jobs:
        done = finished(storage, job.name, job.until)
        if done is None:
            try:
                work.run(job, storage.uri, Worker(), mailbox, saved=lambda step: None)
            except Exception as error:
                if on_failure is None:
                    raise
                on_failure(job, error)
                results.append(None)
                continue
            done = finished(storage, job.name, job.until)
        on_result(done)
        results.append(done)
    return results


def search(
    studies, *, space, width, score, shared, storage, sampler_name, parts, on_told, **of_ray
):
    """Score the candidates of all studies one after the other, here."""
    score.setup(**shared)
    opened = [
        OpenStudy(study, space=space, width=width, sampler_name=sampler_name) for study in studies
    ]
    storage.append(LEDGER, {"event": "opened", "time": 0.0})
    for study in opened:
        for _ in range(width):
            candidate, _ = study.ask()
            asked = {"study": study.study.name, "number": candidate.number}
            fields = {"params": candidate.params, "fields": study.study.fields}
            candidate.figures = score.score(asked | fields, parts)
            candidate.status, candidate.rungs = "finished", [candidate.figures["reward"]]
            storage.append(LEDGER, {"event": "told", "time": 1.0} | asked)
            study.tell(candidate)
            on_told(candidate)
    return [candidate for study in opened for candidate in study.candidates]


HERE = Machine(
    train=train,
    search=search,
    call=lambda function, *arguments, resources: function(*arguments),
    share=lambda value: value,
    warm=lambda build, count, each: None,
)


def on(machine, function):
    """Return a script's function that has a session's work done by another machine than Ray."""

    def run(session, ready):
        session.machine = machine
        return function(session, ready)

    return run


def schema_of(script):
    """Return the whole schema of a script, as ``launch`` knows it."""
    common = {"seed": Value(int, 0), "storage": Value(str, "runs"), "tracking": Tracking}
    common["watch"] = Limits
    return common | script["SCHEMA"]


def resolved(script, path, *overrides, smoke=True):
    """Return the checked configuration of a script (as ``runpy`` gives it) and a YAML."""
    schema = schema_of(script)
    config = configuration.load(path, schema, overrides=overrides, smoke=smoke)
    configuration.check(config, schema)
    return config


def session(folder, config=None):
    """Return a session in ``folder`` that has its work done here."""
    tracker, config = Tracker(), config or {}
    parent = tracker.run("parent", name="parent", params=configuration.flatten(config), tags={})
    return Session(
        config,
        config,
        LocalStorage(Path(folder)),
        collections.defaultdict(lambda: 1),
        parent,
        tracker,
        Path(folder),
        machine=HERE,
    )


def run(script, name, config, folder):
    """Run a script's function on a configuration; return the session."""
    started = session(folder, config)
    script[name](started, script["prepare"](config))
    return started
