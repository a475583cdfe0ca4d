"""The way of figures from the workers to the driver, which alone talks to the tracker.

This file imports next to nothing: its process starts while those of the first workers do.
"""

from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Letter(NamedTuple):
    """What a worker says of its training after some steps.

    Attributes:
        name: the job's.
        step: optimizer steps done.
        steps: of the whole training.
        figures: means since the last letter.
    """

    name: str
    step: int
    steps: int
    figures: dict[str, float]


@ray.remote(num_cpus=0)
class Mailbox:
    """Takes what workers have to say, until the driver asks; only the driver talks to MLflow."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def put(self, letter: Letter) -> None:
        """Keep a letter."""
        self._letters.append(letter)

    def take(self) -> list[Letter]:
        """Return the letters since the last call."""
        letters, self._letters = self._letters, []
        return letters


def open_mailbox() -> Any:
    """Return a mailbox on this host, which comes back empty should its process die."""
    here = ray.get_runtime_context().get_node_id()
    return Mailbox.options(  # type: ignore[attr-defined]
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        max_restarts=-1,
        max_task_retries=-1,
    ).remote()
