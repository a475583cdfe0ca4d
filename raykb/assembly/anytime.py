"""The any-time game as a training of one step: the game is played, and what it left is told.

A step is whole or was not done, so a game has no checkpoint on the way: one whose process dies is
lost, with all its predictions, and is played anew from its first second. One that came to its end
is kept.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raykb.assembly.builder import Config
from raykb.config import build
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.engine.arguments import above, check_settings
from raykb.engine.loop import Evaluated, Training, Worker
from raykb.engine.objective import Terms
from raykb.evaluate.ingestion import Clock, Game, GameData, Part, PassClock, ingestion
from raykb.models import MODELS
from raykb.models.anytime import AnytimeNetwork


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a game is; a section of the config.

    Args:
        seconds: T, from the first call of ``train``.
        scale_s: t0, seconds until which time counts about linearly.
        clock: ``wall``, the challenge's; ``cpu``, that of the process, which neighbours on the
            machine hardly disturb, and which does not see a GPU; or ``passes`` of the network,
            by which a game is the same twice.
        pass_s: seconds that each pass is taken to last, by the clock ``passes``.
    """

    seconds: float = 1200.0
    scale_s: float = 60.0
    clock: Literal["wall", "cpu", "passes"] = "wall"
    pass_s: float = 0.01

    def __post_init__(self) -> None:
        check_settings(self, seconds=above(0), scale_s=above(0), pass_s=above(0))

    def clock_of(self, network: nn.Module) -> Clock:
        """Return what tells the time of a game that is played with ``network``."""
        if self.clock != "passes":
            return time.monotonic if self.clock == "wall" else time.process_time
        passes = PassClock(self.pass_s)
        passes.watch(network)
        return passes


def labelled_part(images: ImageSet) -> Part:
    """Return labelled images as a part of a game's data."""
    labels = np.eye(len(images.classes), dtype=np.float32)[images.labels]
    return Part(images.images[:, None], labels)


def anytime_network(
    config: Config,
    weights: Mapping[str, Tensor] | None,
    *,
    classes: int,
    channels: int,
    video: bool,
) -> AnytimeNetwork:
    """Return the network of a game.

    Args:
        config: the section ``model``, whose network takes three channels.
        weights: to begin from; those whose name and shape the backbone has are taken.
        classes: number of classes.
        channels: of the data.
        video: whether there are several frames.
    """
    backbone: nn.Module = build(MODELS, config["model"], classes=classes, channels=3)
    if weights is not None:
        own = backbone.state_dict()
        fit = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
        backbone.load_state_dict(own | fit)
    return AnytimeNetwork(backbone, classes=classes, channels=channels, video=video)


def game(
    worker: Worker,
    *,
    config: Config,
    seed: int,
    players: Mapping[str, Callable[..., Any]],
    player: Callable[..., Any],
    weights: Mapping[str, Tensor] | None,
) -> Training:
    """Return the game that a config describes; its own data are opened here.

    Args:
        worker: its device.
        config: the sections ``data``, ``model``, ``budget`` and ``strategy``.
        seed: of what the player draws; the caller seeds the network's weights.
        players: the table that ``strategy`` is a row of.
        player: ``player(settings, network, seed=…, device=…, clock=…)`` makes what plays.
        weights: as :func:`anytime_network` takes them.
    """
    budget = build(Budget, config["budget"])
    data = GameData(*(labelled_part(part) for part in build(DATASETS, config["data"])))
    frames, _, _, channels = data.metadata.shape
    classes = data.metadata.get_output_size()
    network = anytime_network(config, weights, classes=classes, channels=channels, video=frames > 1)
    clock, settings = budget.clock_of(network), build(players, config["strategy"])
    plays = player(settings, network, seed=seed, device=worker.device, clock=clock)
    played: list[Game] = []

    def play(batch: int, step: int) -> Terms:
        played.append(ingestion(plays, data, budget.seconds, scale_s=budget.scale_s, clock=clock))
        return {"loss": torch.tensor(plays.losses[-1])}

    return Training(
        step=play,
        update=lambda step: {},
        batches=lambda start: range(start, 1),
        steps=1,
        parts={"model": plays.best},
        evaluate=lambda split: told(played[0], plays.figures(), split),
    )


def told(game: Game, player: Mapping[str, float], split: str) -> Evaluated:
    """Return what a game is worth, how far the player came, and the game's ledger."""
    figures = {"alc": game.alc, "predictions": float(len(game.ledger)), "late": float(game.late)}
    if game.ledger:
        first, last = game.ledger[0], game.ledger[-1]
        figures |= {"nauc": last.nauc, "top1": last.accuracy, "first_s": first.seconds}
    named = {f"{split}/{name}": value for name, value in {**figures, **player}.items()}
    return Evaluated(named, {"ledger": [line._asdict() for line in game.ledger]})
