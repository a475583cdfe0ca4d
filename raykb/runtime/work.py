"""What the worker of a training does; it imports no more of Ray than it needs, to start soon.

Build the training, restore the newest checkpoint that verifies, ``fit``, evaluate, and leave
``final.pt`` (a plain state dict) and ``result.json`` in the training's folder, and there before
them ``config.json``, if its configuration is not the run's. One that halts on the way leaves a
checkpoint and the result so far, for another job to go on from. A model in shares leaves a last
checkpoint too, and ``final.pt`` only if it is small.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch

from raykb.comparison import Entry
from raykb.engine import checkpoint
from raykb.engine.loop import Evaluated, Training, Worker, fit
from raykb.engine.memory import keep_freed_memory
from raykb.engine.objective import Batch
from raykb.engine.seeding import seed_everything, stream_seed
from raykb.runtime.faults import send_failure
from raykb.runtime.mailbox import Letter
from raykb.runtime.meter import Meter
from raykb.runtime.resources import Group, WorkerResources
from raykb.runtime.run_files import CONFIG, FINAL
from raykb.runtime.saving import Checkpoints
from raykb.runtime.secrets import hidden
from raykb.runtime.storage import open_storage
from raykb.runtime.watch import Limits, Watch, hangs, watched

RESULT = "result.json"
DETAILS = "details.json"


def record_of(until: int | None) -> str:
    """Return the file of a training's result; one that halts has a file of its own."""
    return RESULT if until is None else f"halted-{until}.json"


@dataclass(frozen=True)
class TrainJob:
    """One training to be run.

    Attributes:
        name: its folder below the run directory, and its name in the tracker.
        build: ``build(worker, **arguments)`` returns the training; called in each worker.
        arguments: what ``build`` gets; large arrays as references from :func:`share`.
        seed: of the global generators (initial weights, dropout).
        resources: what one of its workers takes.
        params: what the tracker is told of it besides the configuration.
        config: its configuration, where that is not the run's own.
        until: steps after which it halts; another job of its name goes on. None for all of them.
        group: how its workers stand together, if there are several.
    """

    name: str
    build: Callable[..., Training]
    arguments: dict[str, Any]
    seed: int
    resources: WorkerResources = field(default_factory=WorkerResources)
    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    until: int | None = None
    group: Group = field(default_factory=Group)

    @classmethod
    def of(
        cls,
        entry: Entry,
        build: Callable[..., Training],
        resources: WorkerResources,
        *,
        name: str | None = None,
        **arguments: Any,
    ) -> "TrainJob":
        """Return the training of an entry of a comparison.

        Args:
            entry: its seed decides all but the section that is compared.
            build: also gets config and seed of the entry.
            resources: what one worker takes.
            name: the entry's, unless there is more below the run directory than the comparison.
            arguments: what else ``build`` gets.
        """
        given = {"config": entry.config, "seed": entry.seed} | arguments
        return cls(name or entry.name, build, given, entry.seed, resources)


def run_alone(job: TrainJob, uri: str, mailbox: Any, limits: Limits) -> None:
    """Run a training by itself, as a Ray task does."""
    worker = Worker(device=torch.device(job.resources.device))
    run_watched(job, uri, worker, mailbox, limits, saved=lambda step: None)


def run_watched(
    job: TrainJob,
    uri: str,
    worker: Worker,
    mailbox: Any,
    limits: Limits,
    *,
    saved: Callable[[int], None],
) -> None:
    """Run a training in a process of Ray, which is ended should it hang; see :func:`run`."""
    with watched(limits, open_storage(uri), f"{job.name}/rank-{worker.rank}") as watch:
        run(job, uri, worker, mailbox, saved=saved, watch=watch)


def run(
    job: TrainJob,
    uri: str,
    worker: Worker,
    mailbox: Any,
    *,
    saved: Callable[[int], None],
    watch: Watch | None = None,
) -> None:
    """Build, restore, fit, evaluate, and write the result: what every worker does.

    Args:
        job: what to train.
        uri: of the run directory.
        worker: this one.
        mailbox: an actor that takes a :class:`Letter`, and a ``Failure`` before it is raised here.
        saved: is called by every worker when a checkpoint is committed, once per save.
        watch: is told what the worker is at; None where nobody looks.
    """
    try:
        try:
            _run(job, uri, worker, mailbox, saved, watch or Watch(Limits()))
        except SystemExit as error:  # it would end Ray's process, as if that had been lost
            raise RuntimeError(f"the training called sys.exit({error.code!r})") from error
    except Exception as error:
        send_failure(mailbox, job.name, worker.rank, error)
        raise


def _run(
    job: TrainJob,
    uri: str,
    worker: Worker,
    mailbox: Any,
    saved: Callable[[int], None],
    watch: Watch,
) -> None:
    watch.single("its start")
    meter = Meter(worker.device)
    torch.set_num_threads(job.resources.cpus)
    keep_freed_memory()
    folder = open_storage(uri).below(job.name)
    if worker.rank == 0 and job.config is not None:
        folder.write(CONFIG, json.dumps(hidden(job.config), indent=1).encode())
    seed_everything(job.seed)
    arguments = {
        name: ray.get(value) if isinstance(value, ray.ObjectRef) else value
        for name, value in job.arguments.items()
    }
    training = job.build(worker, **arguments)
    halts = job.until is not None
    if job.until is not None:
        training = replace(training, steps=min(job.until, training.steps))
    if worker.rank > 0:  # the same weights everywhere, but dropout of its own
        seed_everything(stream_seed(job.seed, "rank", worker.rank))
    training = _told(training, watch)
    checkpoints = Checkpoints(folder, worker, saved)
    start = checkpoints.restore(training)
    ready = meter.seconds()
    notes = checkpoints.notes + _hung_before(job.name, uri, worker.rank)

    def log(step: int, figures: dict[str, float], note: str = "") -> None:
        if worker.rank == 0:
            mailbox.put.remote(Letter(job.name, step, training.steps, figures, note))

    size = {"cluster/workers": float(worker.size)} if job.group.fewer else {}
    # the training is ready for its first step
    log(start, {"time/build_s": ready} | size, "\n".join(notes))

    def save(state: dict[str, Any]) -> None:
        watch.single(f"the checkpoint of step {state['step']}")
        checkpoints.save(training, state)

    fit(training, start=start, log=log, save=save)
    if (halts or training.shard is not None) and (checkpoints.step or 0) < training.steps:
        save(training.state(training.steps))
    figures, details = training.evaluate("test")
    watch.single("writing its result")
    if worker.rank == 0:
        if not halts and (model := checkpoints.whole_model(training)) is not None:
            folder.write(FINAL, checkpoint.encode(model))
        if details and not halts:
            folder.write(DETAILS, json.dumps(details).encode())
        record = {"metrics": figures, "steps": training.steps, "seconds": meter.seconds()}
        record["cost"] = meter.figures()
        folder.write(record_of(job.until), json.dumps(record, indent=1).encode())


def _told(training: Training, watch: Watch) -> Training:
    """Return the training with a watch that is told where it is."""

    def batches(start: int) -> Iterator[Batch]:
        found = iter(training.batches(start))
        for step in itertools.count(start + 1):
            watch.begin(f"step {step}")
            try:
                batch = next(found)
            except StopIteration:
                return
            yield batch

    def update(step: int) -> dict[str, Any]:
        figures = training.update(step)
        watch.end()
        return figures

    def evaluate(split: str) -> Evaluated:
        with watch.evaluation(f"the evaluation on {split}"):
            return training.evaluate(split)

    return replace(training, batches=batches, update=update, evaluate=evaluate)


def _hung_before(name: str, uri: str, rank: int) -> list[str]:
    """Return a line for a hang of this training that an earlier attempt was ended for."""
    told = hangs(open_storage(uri), name) if rank == 0 else []
    return [told[-1].splitlines()[0]] if told else []
