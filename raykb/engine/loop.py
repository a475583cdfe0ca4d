"""The one training loop: it repeats any step, logs, saves and stops."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

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


class Evaluated(NamedTuple):
    """What an evaluation found: figures to compare, and details to keep.

    Attributes:
        figures: by name, ``{"top1": 0.9}``.
        details: what goes beyond figures (a confusion matrix), as JSON can hold it.
    """

    figures: dict[str, float]
    details: dict[str, Any] = {}  # noqa: RUF012  # a named tuple's default, which nobody changes


class Evaluation(Protocol):
    """Says what a network is worth; can be pickled, and leaves the network as it was."""

    def __call__(self, network: nn.Module, device: torch.device) -> Evaluated:
        """Evaluate a network that is on ``device`` and in evaluation mode."""
        ...


class Feed(Protocol):
    """What a training takes its batches from; can be pickled until they are asked for."""

    def batches(
        self, start: int, worker: Worker, stop: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield a worker's share of steps start, start + 1, …, on its device: fields by name.

        Args:
            start: steps that are done.
            worker: its place among those that share each step, and its device.
            stop: steps in all, so that nothing is made that nobody will see; None for no end.

        Raises:
            ValueError: a step cannot be shared out so; at once, before the first is asked for.
        """
        ...

    def figures(self) -> dict[str, float]:
        """Return figures of what runs beside, as ``stream/…``; cheap enough for every step."""
        ...

    def close(self) -> None:
        """End what :meth:`batches` has started."""
        ...


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
        evaluate: ``evaluate("test")`` returns figures of the network as it is, under names such as
            ``test/top1``; every rank calls it, what rank 0 gets counts.
        shard: where several ranks have a share of the model each; None where rank 0 has all.
        save_every: steps between two checkpoints, 0 for none.
        log_every: steps between two records.
        evaluate_every: steps between two evaluations on the way, 0 for none.
    """

    step: Step
    update: Callable[[int], dict[str, Any]]
    batches: Callable[[int], Iterable[Batch]]
    steps: int
    parts: dict[str, Stateful]
    evaluate: Callable[[str], Evaluated] = lambda split: Evaluated({})
    shard: Shard | None = None
    save_every: int = 0
    log_every: int = 50
    evaluate_every: int = 0

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
        self._counts: dict[str, int] = {}  # by name: a step need not have all figures

    def add(self, figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def mean(self, name: str) -> float:
        return float(self._sums[name]) / self._counts[name]

    def take(self) -> dict[str, float]:
        means = {name: self.mean(name) for name in self._sums}
        self._sums, self._counts = {}, {}
        return means


def fit(
    training: Training,
    *,
    start: int = 0,
    log: Log,
    save: Save | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train from step ``start`` to the end; return the number of steps that are done.

    Args:
        training: what is repeated; it says how often it is logged, saved and evaluated.
        start: steps already done, as :meth:`Training.restore` returns it.
        log: gets means over the steps since the last record: the terms as ``train/…``, the seconds
            of a step and its wait for data as ``time/…``; and evaluations on the way, ``valid/…``.
        save: gets the whole run state; None saves nothing.
        stop: is asked after each step; when it says so, the state is saved and fit returns.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    means = _Means()
    batches = iter(training.batches(start))
    done, last = start, training.steps
    while done < last:
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
        saving = stopping or (training.save_every > 0 and done % training.save_every == 0)
        logging = done % training.log_every == 0 or done == last or stopping
        if logging or saving:  # what is not finite is never saved, for nothing could go on with it
            loss = means.mean("train/loss")
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"loss: {loss} within the {training.log_every} steps up to {done}; lower the "
                    "learning rate, or clip the gradient"
                )
        if logging:
            log(done, means.take())
        if _due(training.evaluate_every, done, last):
            log(done, training.evaluate("valid").figures)
        if save is not None and saving:
            save(training.state(done))
        if stopping:
            break
    return done


def _due(every: int, done: int, last: int) -> bool:
    return every > 0 and (done % every == 0 or done == last)
