"""The any-time game of the AutoDL challenge: train and predict as often as one likes, by a clock.

    model = Model(metadata)                          not on the clock
    until model.done_training, or the budget is spent:
        model.train(train, seconds_left)
        predictions = model.test(test, seconds_left)         (N, C) in [0, 1], with their moment

A model of the challenge's starting kit plays as it is, if it reads its data by iterating: a
:class:`Part` yields (example, labels) pairs as the challenge's do. One that knows better takes the
arrays of a part at once. What the truth of the test part is no model sees: its labels are zeros.

Departures: the challenge interrupts a model by an alarm when the budget is spent. Here a call is
left to its end, and a prediction that comes too late counts nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn

from raykb.metrics.anytime import area_under_learning_curve, log_time, nauc

Clock = Callable[[], float]
"""Seconds since some moment; what tells time to a game, so that a test can hold it."""


@dataclass
class PassClock:
    """A clock that only forward passes move, so that a game is the same twice on any machine.

    Args:
        pass_s: seconds that each pass of a watched network, or of a copy of it, is taken to last.
    """

    pass_s: float
    seconds: float = 0.0

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self.seconds

    def watch(self, network: nn.Module) -> None:
        """Go on whenever ``network`` is used."""
        network.register_forward_pre_hook(self._passes)

    def _passes(self, network: nn.Module, inputs: Any) -> None:
        self.seconds += self.pass_s

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassClock":
        return self  # a copy of a watched network moves the same clock


@dataclass(frozen=True, eq=False)
class Part:
    """Labelled examples of one part of the data.

    Attributes:
        examples: (N, T, C, H, W) uint8, or float of any range; T is 1 of images.
        labels: (N, classes) float32 of 0 and 1; several may be 1 in a row.

    Raises:
        ValueError: the arrays contradict each other.
    """

    examples: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        shapes = self.examples.shape, self.labels.shape
        if self.examples.ndim != 5 or self.labels.ndim != 2 or shapes[0][:1] != shapes[1][:1]:
            raise ValueError(
                f"examples, labels: {shapes[0]} and {shapes[1]}, must be (N, T, C, H, W) and "
                "(N, classes); an image has T = 1"
            )
        if not len(self):
            raise ValueError("examples: none, there must be at least one")

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (T, H, W, C) float32 and labels (classes,), as the challenge's data are."""
        for example, labels in zip(self.examples, self.labels, strict=True):
            yield example.transpose(0, 2, 3, 1).astype(np.float32), labels


@dataclass(frozen=True)
class Metadata:
    """What a model is told of the data before it sees them, by the challenge's names.

    Attributes:
        examples: of the training part.
        classes: their number.
        shape: (T, H, W, C) of an example.
    """

    examples: int
    classes: int
    shape: tuple[int, int, int, int]

    def size(self) -> int:
        """Return the number of training examples."""
        return self.examples

    def get_output_size(self) -> int:
        """Return the number of classes."""
        return self.classes

    def get_tensor_shape(self, bundle_index: int = 0) -> tuple[int, int, int, int]:
        """Return (T, H, W, C)."""
        return self.shape

    def get_sequence_size(self) -> int:
        """Return T."""
        return self.shape[0]

    def get_matrix_size(self, bundle_index: int = 0) -> tuple[int, int]:
        """Return (H, W)."""
        return self.shape[1:3]

    def get_num_channels(self, bundle_index: int = 0) -> int:
        """Return C."""
        return self.shape[3]


@dataclass(frozen=True, eq=False)
class GameData:
    """What a game is played on: a part to learn from, one to predict whose labels are hidden."""

    train: Part
    test: Part

    @property
    def metadata(self) -> Metadata:
        """What a model is told."""
        _, frames, channels, height, width = self.train.examples.shape
        shape = (frames, height, width, channels)
        return Metadata(len(self.train), self.train.labels.shape[1], shape)

    @property
    def hidden(self) -> Part:
        """The test part as a model is given it."""
        return Part(self.test.examples, np.zeros_like(self.test.labels))


class Model(Protocol):
    """What plays, as the challenge has it."""

    done_training: bool

    def train(self, dataset: Any, remaining_time_budget: float) -> None:
        """Train for as long as it likes; predictions are asked for when it returns."""

    def test(self, dataset: Any, remaining_time_budget: float) -> Any:
        """Return predictions (N, classes) in [0, 1]."""


class Prediction(NamedTuple):
    """One line of a game's ledger.

    Attributes:
        seconds: since the start.
        log_time: the same as t~; 1 is the end of the budget.
        nauc: its score.
        accuracy: share of examples whose likeliest class is one of theirs; for information.
        alc: what the game would be worth, were this its last prediction.
    """

    seconds: float
    log_time: float
    nauc: float
    accuracy: float
    alc: float


class Game(NamedTuple):
    """How a game went.

    Attributes:
        ledger: predictions that came in time, in order.
        late: how many came too late.
        seconds: until the model was done, or the budget spent.
    """

    ledger: list[Prediction]
    late: int
    seconds: float

    @property
    def alc(self) -> float:
        """Its score; 0 without any prediction."""
        return self.ledger[-1].alc if self.ledger else 0.0


def ingestion(
    model: Model,
    data: GameData,
    budget_s: float,
    *,
    scale_s: float = 60.0,
    clock: Clock = time.monotonic,
) -> Game:
    """Play a game; return what was predicted when, and what it is worth.

    Args:
        model: as the challenge has it; it was made before the clock starts.
        data: what it is played on.
        budget_s: T, 1200 in the challenge.
        scale_s: t0 of the score.
        clock: tells the time.

    Raises:
        ValueError: predictions have another shape, or a value outside [0, 1].
    """
    hidden, start = data.hidden, clock()
    made: list[tuple[float, float, float]] = []  # seconds, NAUC, accuracy
    ledger: list[Prediction] = []
    late = 0

    def left() -> float:
        return budget_s - (clock() - start)

    while not model.done_training and left() > 0:
        model.train(data.train, left())
        predicted = _checked(model.test(hidden, left()), data.test.labels.shape)
        if (moment := clock() - start) > budget_s:
            late += 1
            continue
        made.append((moment, *_worth(predicted, data.test.labels)))
        ledger.append(_line(made, budget_s, scale_s))
    return Game(ledger, late, clock() - start)


def _checked(predicted: Any, shape: Sequence[int]) -> np.ndarray:
    """Return predictions as an array, which has the shape of the labels and lies in [0, 1]."""
    found = np.asarray(predicted, dtype=np.float64)
    if found.shape != tuple(shape) or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(
            f"predictions: of shape {found.shape}, must be {tuple(shape)}, each in [0, 1]; give "
            "softmax or sigmoid of the logits of all test examples"
        )
    return found


def _worth(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return NAUC, 0 where it is not defined, and accuracy."""
    score = nauc(predicted, truth)
    hits = np.take_along_axis(truth, predicted.argmax(axis=1)[:, None], axis=1)
    return 0.0 if math.isnan(score) else score, float(hits.mean())


def _line(
    made: Sequence[tuple[float, float, float]], budget_s: float, scale_s: float
) -> Prediction:
    """Return the ledger's line of the last of the predictions."""
    seconds, scores, _ = zip(*made, strict=True)
    alc = area_under_learning_curve(seconds, scores, budget_s, scale_s)
    moment, score, accuracy = made[-1]
    return Prediction(moment, log_time(moment, budget_s, scale_s), score, accuracy, alc)
