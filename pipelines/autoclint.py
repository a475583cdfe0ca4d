"""Play the any-time game: classify unknown images with a prediction at every moment.

AutoCLINT reads a data set once, chooses the size of its input, trains a small network and hands in
predictions as often as is worth it; the score is the area under the learning curve over log time,
so the first seconds count most. It plays beside others that leave a part of it out, under the same
clock and over several seeds. With no option it does so on the images that come with raykb, with two
minutes a game.

  autoclint.py --set budget.seconds=60 --set comparison.seeds=5
  autoclint.py --set budget.clock=cpu            # on a machine that has other work
  autoclint.py --set comparison.over=data --set 'comparison.rivals={emoji: {name: emoji_sample}}'
  autoclint.py --set budget.clock=cpu --set 'resources.game={cpus: 1, side_by_side: 2}'

Two games at once take each other's time by the wall, hardly by the CPU seconds of their process, so
one is played after the other unless resources.game.side_by_side says how many may be.

A clock decides what is trained when, so a run is not the same twice unless it counts the network's
passes (budget.clock=passes); a game that was stopped is played anew from its first second.

Paper: Baek et al., "AutoCLINT: The Winning Method in AutoCV Challenge 2019", arXiv:2005.04373.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raykb.assembly import SECTIONS, Budget, anytime_network, compared, game, read_weights
from raykb.augment.autoclint.player import Player
from raykb.augment.autoclint.settings import AutoClint
from raykb.comparison import Entry
from raykb.config import Problems, Section, Value, build
from raykb.data.datasets import open_records
from raykb.later import Later
from raykb.runtime.comparison_run import ComparisonRun
from raykb.runtime.job import launch
from raykb.runtime.resources import WorkerResources
from raykb.runtime.session import Session, rows_of
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "anytime" / "autoclint_fashion_mnist_sample.yaml"
GAMES = "games"
METRICS = ("test/alc", "test/nauc", "test/top1", "test/first_s", "test/predictions")
PLAYERS = {"autoclint": AutoClint}
PRETRAINED, WEIGHTS = "resnet18", "ResNet18_Weights.IMAGENET1K_V1"  # and torchvision's, for it
SCHEMA = {
    "data": SECTIONS["data"],
    "model": SECTIONS["model"],
    "budget": Budget,
    "pretrained": Value(bool, True),
    "strategy": Section(PLAYERS, default="autoclint"),
    "comparison": compared(over="strategy"),
    # two games on one machine would take each other's time
    "resources.game": Section(functools.partial(WorkerResources, side_by_side=1)),
}


Ready = ComparisonRun[None]  # whoever plays opens the data


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data of each entry and build its network.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems, run = Problems(), Ready.of(config, None, name=GAMES, resources="game")
    if (workers := run.each.workers) > 1:
        problems.add(f"resources.game.workers: {workers}, must be 1: one process plays a game")
    for entry in run.comparison.entries(config).values():
        with problems.at("data", entry["data"]):
            open_records(**entry["data"])
        with problems.at("model", entry["model"]):
            anytime_network(entry, None, classes=2, channels=1, video=False)
        with problems.at("strategy", entry["strategy"]):
            kept, budget = build(PLAYERS, entry["strategy"]).reserve_s, entry["budget"]["seconds"]
            if kept >= budget:
                problems.add(
                    f"strategy.reserve_s: {kept}, must be below budget.seconds, {budget}: of this "
                    "game nothing would be left to train in; give a smaller one"
                )
    problems.refuse()
    return run


def autoclint(session: Session, ready: Ready) -> None:
    """Play all games; those of an earlier run of the directory that ended are not played again."""
    weights = session.share(weights=pretrained(session))["weights"]
    given = {"players": PLAYERS, "player": Player, "weights": weights}
    results = ready.train(session, lambda e: TrainJob.of(e, game, ready.each, **given))
    tell_results(session, ready, results)


def pretrained(session: Session) -> dict[str, Tensor] | None:
    """Return torchvision's weights for ImageNet, if they are wanted and can be had."""
    model = session.config["model"]
    if not session.config["pretrained"]:
        return None
    if model["name"] != PRETRAINED or model["stem"] != "large":
        session.say(
            f"model: not {PRETRAINED} with stem 'large', so that it starts from random weights"
        )
        return None
    try:
        weights = read_weights(WEIGHTS)
    except ConnectionError as error:
        session.say(f"pretrained: {error}; networks start from random weights")
        return None
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


def tell_results(session: Session, ready: Ready, results: Sequence[tuple[Entry, Result]]) -> None:
    """Write and print what games are worth; the tracker has each prediction at its millisecond."""
    budget = build(Budget, session.config["budget"])
    ledgers = [(entry.label, result.details()["ledger"]) for entry, result in results]
    for (_, ledger), (_, result) in zip(ledgers, results, strict=True):
        run = session.child(result.name, phase=GAMES)
        for line in ledger:
            figures = {f"game/{name}": value for name, value in line.items()}
            run.log(round(1000 * line["seconds"]), figures)
    picture = report.learning_curves(ledgers, budget.seconds, budget.scale_s)
    session.write("curves.png", report.png(picture))
    session.tell(ready.comparison, rows_of(results), METRICS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        autoclint,
        description=__doc__ or "",
        default=DEFAULT,
        schema=SCHEMA,
        experiment="any-time game",
        prepare=prepare,
        may_change=("resources",),
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
