"""The one training loop: it repeats any step, logs, saves and stops."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from raykb.engine.objective import Batch, Step
from raykb.engine.seeding import rng_state, set_rng_state

Log = Callable[[int, dict[str, float]], None]
"""``log(step, {name: value})``; never raises and never waits."""

Save = Callable[[dict[str, Any]], None]
"""``save(state)`` returns when the state is durable."""


@dataclass(frozen=True)
class Worker:
    """Who builds a training: its place among the workers that share it, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Stateful(Protocol):
    """What can be put into a checkpoint: modules, optimizers, schedulers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take over a state that :meth:`state_dict` returned."""
        ...


@dataclass(frozen=True)
class Shard:
    """Says that the state of each rank is its own share of the run's, under names of the whole.

    The states of the parts ``model`` and ``optimizer`` (an
    :class:`raykb.engine.optim.NamedOptimizer`) have the names of the whole model as keys; those of
    all other parts are equal on all ranks. What was saved by some ranks can be taken up by any
    other number of them.

    Attributes:
        saved: whether it is this rank that saves its share; replicas of it do not.
    """

    saved: bool = True


@dataclass
class Training:
    """All that one training consists of; what :func:`fit` repeats and what is saved.

    Attributes:
        step: forward and backward of one batch.
        update: what follows each backward pass; returns figures to log.
        batches: ``batches(start)`` yields the batches of steps start, start + 1, …; what a
            step sees depends on its number alone, so the number is the data position.
        steps: optimizer steps of the whole training.
        parts: what makes up the run's state, by name.
        evaluate: figures of the finished training, ``{"test/top1": 0.9}``; every rank calls it,
            those of rank 0 count.
        shard: where several ranks have a share of the model each; None where rank 0 has all.
    """

    step: Step
    update: Callable[[int], dict[str, Any]]
    batches: Callable[[int], Iterable[Batch]]
    steps: int
    parts: dict[str, Stateful]
    evaluate: Callable[[], dict[str, float]] = field(default=dict)
    shard: Shard | None = None

    def state(self, step: int) -> dict[str, Any]:
        """Return the whole run state after ``step`` steps, safe for ``weights_only`` loading."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {"step": step, "rng": rng_state(), "parts": parts}

    def restore(self, state: dict[str, Any]) -> int:
        """Take over a state of :meth:`state`; return the step to go on with."""
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        set_rng_state(state["rng"])
        return int(state["step"])


class _Means:
    """Means of figures since the last look; tensors stay where they are until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._count = 0

    def add(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


def fit(
    training: Training,
    *,
    start: int = 0,
    log: Log,
    log_every: int = 50,
    save: Save | None = None,
    save_every: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train from step ``start`` to the end; return the number of steps that are done.

    Args:
        training: what is repeated.
        start: steps already done, as :meth:`Training.restore` returns it.
        log: gets means over ``log_every`` steps: the terms as ``train/…``, the seconds of a step
            and its wait for data as ``time/…``.
        log_every: steps between two calls of ``log``.
        save: gets the whole run state; None saves nothing.
        save_every: steps between two saves; 0 saves only on ``stop``.
        stop: is asked after each step; when it says so, the state is saved and fit returns.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    means = _Means()
    batches = iter(training.batches(start))
    done = start
    while done < training.steps:
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        terms = training.step(batch, done)
        figures = training.update(done)
        done += 1
        means.add(
            {f"train/{name}": value for name, value in (terms | figures).items()}
            | {"time/data_wait_s": waited, "time/step_s": time.perf_counter() - began}
        )
        stopping = stop()
        if done % log_every == 0 or done == training.steps or stopping:
            figures = means.take()
            if not math.isfinite(figures["train/loss"]):
                raise FloatingPointError(
                    f"loss: {figures['train/loss']} within the {log_every} steps up to {done}; "
                    "lower the learning rate, or clip the gradient"
                )
            log(done, figures)
        if save is not None and (stopping or (save_every and done % save_every == 0)):
            save(training.state(done))
        if stopping:
            break
    return done
