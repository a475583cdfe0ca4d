"""AutoCLINT plays the any-time game: a classifier of unknown images or videos within minutes.

Baek, Kim, Kim, Lim, "AutoCLINT: The Winning Method in AutoCV Challenge 2019", 2020,
arXiv:2005.04373, and its official code (Apache-2.0).

    read the data once: size, kind, range, a part to validate on      reading.py
    repeat epochs of 30 steps                                         train, below
        validate if that is worth its time                            strategy.py
        predict with the best network if that is worth it             test, below
        once, search augmentations                                    search.py

The rate of batches of B climbs from half of ``lr max(1/2, B / 32)`` to the whole of it over five
epochs and is halved when the training loss has not fallen for ten.

Departures: the official code keeps 50 networks, of which it only ever uses the best; here that one
is kept, as a copy. Data are bytes in memory, see ``reading.py``. A clock decides what is trained
when, so two games of one seed differ; by one that counts the network's passes they do not.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykb.augment.augmentations import FromPolicy
from raykb.augment.autoclint.loss import classification_loss, probabilities
from raykb.augment.autoclint.reading import Reading, held_out
from raykb.augment.autoclint.search import light_search
from raykb.augment.autoclint.settings import AutoClint
from raykb.augment.autoclint.strategy import Epoch, Strategy
from raykb.augment.policy import Policy
from raykb.engine.seeding import generator, keyed_uniform, stream_seed
from raykb.metrics.anytime import nauc

_FALLS = 1e-4  # by how much a training loss has to be lower
_TESTED = 256  # examples of one forward pass without gradient


@dataclass
class Rate:
    """The learning rate by the epoch."""

    peak: float
    warmup: int
    patience: int
    halvings: int = 0
    _lowest: float = float("inf")
    _since: int = 0

    def at(self, epoch: int) -> float:
        """Return the rate of an epoch, from 0."""
        climbed = 0.5 * (1 + min(1.0, epoch / max(self.warmup, 1)))
        return self.peak * climbed * 0.5**self.halvings

    def note(self, loss: float) -> None:
        """Take note of an epoch's training loss."""
        if loss < self._lowest - _FALLS:
            self._lowest, self._since = loss, 0
            return
        self._since += 1
        if self._since > self.patience:
            self.halvings, self._since = self.halvings + 1, 0


class Player:
    """A model as :func:`raykb.evaluate.ingestion.ingestion` takes it.

    Args:
        settings: thresholds.
        network: from (N, T, C, H, W) in [0, 1] to logits (N, classes).
        seed: of order, flips and candidates; the caller seeds the weights.
        device: where all of it runs.
        clock: tells the time.

    Attributes:
        network: is trained.
        best: a copy of it as it was after its best epoch; predicts, and is walked away with.
        policy: of the training images, if one was found.
        losses: mean training loss of each epoch.
    """

    def __init__(
        self,
        settings: AutoClint,
        network: nn.Module,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.seed, self.clock = settings, seed, clock
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.best = copy.deepcopy(self.network)
        self.done_training = False
        self.policy: Policy | None = None
        self.losses: list[float] = []
        self._test: Tensor | None = None
        self._test_s, self._epoch_s, self._passes = 0.0, 0.0, 0
        self._order: list[int] = []
        self._begin()  # not on the clock, as the first optimizer of a process imports for seconds

    def train(self, dataset: Any, remaining_time_budget: float) -> None:
        """Train until a prediction is worth handing in."""
        began, inner = self.clock(), 0
        if not self.losses:
            self._read(dataset)
        while True:
            inner += 1
            start = self.clock()
            score = self._epoch()
            self._epoch_s = self.clock() - start
            epoch = self._shown(inner, score, began, remaining_time_budget)
            leaves = self.strategy.leaves(epoch)
            if self.strategy.best == score:
                self.best.load_state_dict(self.network.state_dict())
            if self.strategy.searches(epoch):
                self._search(score, ends=began + remaining_time_budget)
            if leaves:
                break
        self.done_training = self.strategy.done

    def test(self, dataset: Any, remaining_time_budget: float) -> np.ndarray:
        """Return predictions (N, classes) of the best network so far."""
        start = self.clock()
        if self._test is None or not self.settings.cache:
            self._test = self.reading.taken(dataset.examples).to(self.device)
        flip = self.settings.test_time_flip and self.strategy.predictions > 0
        predicted = self._predicted(self.best, self._test, flip)
        self.strategy.predicted()
        self._test_s = self.clock() - start
        return predicted

    def figures(self) -> dict[str, float]:
        """Return how far it came: epochs, whether it searched, and sub-policies that it found."""
        found = 0 if self.policy is None else len(self.policy)
        return {
            "epochs": float(len(self.losses)),
            "searched": float(self.strategy.searched),
            "sub_policies": float(found),
        }

    def _read(self, dataset: Any) -> None:
        """Read the data, and make what trains the network."""
        settings, labels = self.settings, dataset.labels
        self.reading = Reading.of(dataset.examples, labels, settings)
        self._raw = dataset.examples
        self.rows, self.held = held_out(labels, settings, stream_seed(self.seed, "held out"))
        cached = settings.cache
        self._examples = self.reading.taken(dataset.examples).to(self.device) if cached else None
        self._truth = torch.from_numpy(labels).float().to(self.device)
        classes = labels.shape[1]
        video, wide = self.reading.video, classes > 16
        self._batch = settings.batch_size // 2 if video else settings.batch_size * (1 + wide)
        peak = settings.lr * max(0.5, self._batch / 32)
        self.rate = Rate(peak, settings.warmup, settings.patience)
        self.strategy = Strategy(settings, len(self.rows), video=video)

    def _begin(self) -> None:
        """Make an optimizer; each epoch has a rate of its own."""
        settings = self.settings
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )

    def _taken(self, rows: np.ndarray) -> Tensor:
        """Return inputs of these rows, uint8 (n, T, C, H, W) on the device."""
        if self._examples is not None:
            return self._examples[torch.from_numpy(rows).to(self.device)]
        return self.reading.taken(self._raw[rows]).to(self.device)

    def _next_rows(self) -> np.ndarray:
        """Return the rows of the next batch: shuffled passes, one after another."""
        while len(self._order) < self._batch:
            shuffle = generator(self.seed, "order", self._passes)
            self._order += self.rows[torch.randperm(len(self.rows), generator=shuffle)].tolist()
            self._passes += 1
        batch, self._order = self._order[: self._batch], self._order[self._batch :]
        return np.asarray(batch)

    def _augmented(self, examples: Tensor, rows: np.ndarray, step: int) -> Tensor:
        """Return the policy's images, half of them mirrored, as float32 in [0, 1]."""
        if self.policy is not None:
            policy = FromPolicy(self.policy, self.seed)
            examples = policy(examples[:, 0], rows, step)[:, None]
        stream = stream_seed(self.seed, "flip", step)
        mirrored = keyed_uniform(stream, rows, 1).flatten().to(self.device) < 0.5
        flipped = torch.where(mirrored.view(-1, 1, 1, 1, 1), examples.flip(4), examples)
        return flipped.float() / 255

    def _epoch(self) -> float:
        """Train for an epoch; return its validation score, or what stands in for it."""
        network, multi = self.network.train(), self.reading.multi_label
        number, losses, seen = len(self.losses), [], []
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(number)
        for turn in range(self.settings.steps):
            rows = self._next_rows()
            examples = self._augmented(self._taken(rows), rows, number * self.settings.steps + turn)
            truth = self._truth[torch.from_numpy(rows).to(self.device)]
            logits = network(examples)
            loss = classification_loss(logits, truth, multi)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
            seen.append((probabilities(logits.detach(), multi), truth))
        self.losses.append(float(torch.stack(losses).mean()))
        self.rate.note(self.losses[-1])
        self.strategy.trained(_score(*(torch.cat(part) for part in zip(*seen, strict=True))))
        return self._validated() if self.strategy.validates else (number + 1) * 1e-4

    def _validated(self) -> float:
        predicted = self._predicted(self.network, self._taken(self.held), flip=False)
        return _score(torch.from_numpy(predicted), self._truth[self.held].cpu())

    def _shown(self, inner: int, score: float, began: float, left: float) -> Epoch:
        spent = self.clock() - began
        return Epoch(
            number=len(self.losses),
            inner=inner,
            score=score,
            lr=self.rate.at(len(self.losses) - 1),
            call_s=spent,
            left_s=left - spent,
            epoch_s=self._epoch_s,
            test_s=self._test_s,
        )

    @torch.inference_mode()
    def _predicted(self, network: nn.Module, examples: Tensor, flip: bool) -> np.ndarray:
        """Return (N, classes): what a network says of examples, and of their mirror images."""
        network.eval()
        logits = []
        for part in examples.split(_TESTED):
            inputs = part.float() / 255
            said = network(inputs)
            logits.append((said + network(inputs.flip(4))) / 2 if flip else said)
        predicted: np.ndarray = (
            probabilities(torch.cat(logits).float(), self.reading.multi_label).cpu().numpy()
        )
        return predicted

    def _search(self, score: float, *, ends: float) -> None:
        """Search augmentations on the validation images, and train on with what was found.

        Args:
            score: of the network as it is.
            ends: when the game does; an epoch and a prediction must be possible afterwards.
        """
        self.strategy.has_searched()
        if self.reading.channels not in (1, 3):
            return  # operations on images know grey and colour
        after = self.strategy.last_s(self._epoch_s, self._test_s)
        self.policy = light_search(
            self.network,
            self._taken(self.held)[:, 0].cpu().numpy(),
            self._truth[self.held].cpu().numpy(),
            score=score,
            multi_label=self.reading.multi_label,
            settings=self.settings,
            seed=self.seed,
            device=self.device,
            left=lambda: ends - after - self.clock(),
        )
        self.rate.peak /= 2
        self._begin()


def _score(predicted: Tensor, truth: Tensor) -> float:
    """Return NAUC; 0 where it is not defined."""
    score = nauc(predicted.cpu().double().numpy(), truth.cpu().numpy())
    return 0.0 if np.isnan(score) else score
