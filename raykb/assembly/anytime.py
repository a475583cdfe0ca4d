"""The any-time game as a training of one step: the game is played, and what it left is told.

No checkpoint is ever made, for a clock cannot be saved: a game whose process dies is lost, with
all its predictions, and is played anew from its first second. One that came to its end is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raykb.assembly.builder import Config
from raykb.config import build
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.engine.arguments import above, misfits, refuse
from raykb.engine.loop import Evaluated, Training, Worker
from raykb.engine.objective import Terms
from raykb.evaluate.ingestion import Game, GameData, Part, ingestion
from raykb.models import MODELS
from raykb.models.anytime import AnytimeNetwork


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a game is; a section of the config.

    Args:
        seconds: T, from the first call of ``train``.
        scale_s: t0, seconds until which time counts about linearly.
    """

    seconds: float = 1200.0
    scale_s: float = 60.0

    def __post_init__(self) -> None:
        refuse(misfits(self, seconds=above(0), scale_s=above(0)))


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


class _Best:
    """The best network of a player, which is there when the game is over."""

    def __init__(self, player: Any) -> None:
        self.player = player

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.player.best.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        raise NotImplementedError("a game cannot be gone on with; it is played anew")


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
        player: ``player(settings, network, seed=…, device=…)`` makes what plays.
        weights: as :func:`anytime_network` takes them.
    """
    budget = build(Budget, config["budget"])
    train, test = (labelled_part(part) for part in build(DATASETS, config["data"]))

    def network(**shape: Any) -> nn.Module:
        return anytime_network(config, weights, **shape)

    plays = player(build(players, config["strategy"]), network, seed=seed, device=worker.device)
    played: list[Game] = []

    def play(batch: int, step: int) -> Terms:
        data = GameData(train, test)
        played.append(ingestion(plays, data, budget.seconds, scale_s=budget.scale_s))
        return {"loss": torch.tensor(plays.losses[-1])}

    return Training(
        step=play,
        update=lambda step: {},
        batches=lambda start: range(start, 1),
        steps=1,
        parts={"model": _Best(plays)},
        evaluate=lambda split: told(played[0], split),
    )


def told(game: Game, split: str) -> Evaluated:
    """Return what a game is worth, and its ledger."""
    figures = {"alc": game.alc, "predictions": float(len(game.ledger)), "late": float(game.late)}
    if game.ledger:
        first, last = game.ledger[0], game.ledger[-1]
        figures |= {"nauc": last.nauc, "top1": last.accuracy, "first_s": first.seconds}
    named = {f"{split}/{name}": value for name, value in figures.items()}
    return Evaluated(named, {"ledger": [line._asdict() for line in game.ledger]})
