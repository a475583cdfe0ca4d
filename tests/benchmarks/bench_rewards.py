"""Which reward to search by: what the policy that each one finds is worth, and what it is made of.

    python tests/benchmarks/bench_rewards.py sample --set comparison.seeds=5
    python tests/benchmarks/bench_rewards.py bars

``sample`` is ``pipelines/fastaa_search.py`` without Ray and MLflow, one thread a process: the same
theta trainings, for each reward the studies that the script would search, and the final trainings
with every policy found, on the test images and on the training images that the config leaves out.
Settings are chosen by the latter: they are more, and the test images stay unseen.

``bars`` searches on images whose class is the angle of a bar, where rotation and shear destroy the
label, and tells their share of each policy's strength.
"""

import argparse
import functools
import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "augment"))

import numpy as np
import torch
from bars import BARS, bars, by_effect, by_level, turning_share
from torch import nn

from pipelines.fastaa_search import DEFAULT, SCHEMA, final, prepare, theta
from raykb.assembly import Data, network_of
from raykb.augment.density_matching import DensityMatching
from raykb.augment.fast_autoaugment import SCORES, best, merge, policy_from, reward, search_space
from raykb.augment.policy import Policy
from raykb.comparison import Entry
from raykb.config import Value, build, load
from raykb.data.datasets import DATASETS
from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.splits import SPLITS
from raykb.data.views import VIEWS
from raykb.engine.assemble import evaluating
from raykb.engine.loop import Worker, fit
from raykb.engine.memory import keep_freed_memory
from raykb.engine.seeding import seed_everything, stream_seed
from raykb.evaluate.classification import Classification
from raykb.report.comparison import ComparisonTable
from raykb.runtime.job import Tracking
from raykb.runtime.open_study import OpenStudy
from raykb.runtime.studies import Candidate, Study
from raykb.runtime.work import TrainJob

PARTS = ("test", "spare training")


def start() -> None:
    """Prepare a process that trains, as a worker of the script is."""
    torch.set_num_threads(1)
    keep_freed_memory()


def trained(job: TrainJob) -> nn.Module:
    """Return the network of a job of the script, trained as its worker would."""
    seed_everything(job.seed)
    training = job.build(Worker(), **job.arguments)
    fit(training, log=lambda step, figures: None)
    network: nn.Module = training.parts["model"]  # type: ignore[assignment]
    return network


def accuracies(job: TrainJob, sets: Sequence[ImageSet], view: ClassifierView) -> list[float]:
    """Train a job of the script; return its top-1 on each of ``sets``."""
    network, cpu = trained(job), torch.device("cpu")
    with evaluating(network):
        return [
            Classification(images, view, len(images.classes))(network, cpu).figures["top1"]
            for images in sets
        ]


class Search:
    """The script's search without Ray; a candidate that two rewards ask about is scored once."""

    def __init__(self, config: dict[str, Any], train: ImageSet, pool: Executor) -> None:
        ready = prepare(config)
        self.config, self.choice = config, ready.settings
        classes, channels = len(train.classes), train.images.shape[1]
        data = Data(feed=None, samples=len(train), classes=classes, channels=channels)
        split = functools.partial(build, SPLITS, config["splits"])
        splits = self.choice.splits(train.labels, split, config["seed"])
        images = {"train": train, "test": train}
        jobs = [
            theta(ready, images | {"rows": rest}, config, n) for n, (rest, _) in enumerate(splits)
        ]
        self._splits = len(splits)
        self._score = DensityMatching(
            network=functools.partial(network_of, config, data),
            view=build(VIEWS, config["view"]),
            held_out=[held_out for _, held_out in splits],
            settings=self.choice,
            seed=config["seed"],
            device="cpu",
        )
        self._score.setup(train, [network.state_dict() for network in pool.map(trained, jobs)])
        self._known: dict[str, dict[str, float]] = {}

    def policy(self, name: str) -> Policy:
        """Return the policy that the script finds by the score called ``name``."""
        kept = []
        for split in range(self._splits):
            for turn in range(self.choice.rounds):
                candidates = self._searched(name, split, turn)
                kept += best(candidates, self.choice.keep)
        return merge([policy_from(candidate.params) for candidate in kept])

    def _searched(self, name: str, split: int, turn: int) -> list[Candidate]:
        seed = stream_seed(self.config["seed"], "study", split, turn) % 2**32
        study = OpenStudy(
            Study(f"split-{split}/round-{turn}", f"split-{split}", seed, {"split": split}),
            space=search_space(self.choice.sub_policies, self.choice.operations),
            width=self.choice.width,
            sampler_name=self.choice.sampler,
        )
        candidates = []
        while study.to_ask:
            asked, _ = study.ask()
            value = reward(self._scores(asked.params, split), name)
            asked.figures, asked.status = {"reward": value}, "finished"
            study.tell(asked)
            candidates.append(asked)
        return candidates

    def _scores(self, params: dict[str, Any], split: int) -> dict[str, float]:
        key = json.dumps([split, params])
        if key not in self._known:
            candidate = {"study": key, "number": 0, "params": params, "fields": {"split": split}}
            self._known[key] = self._score.score(candidate, 1)
        return self._known[key]


def sample(config: dict[str, Any], rewards: Sequence[str], pool: Executor) -> None:
    """Print what the policies of ``rewards`` are worth, and each training as it is done."""
    train, test = build(DATASETS, config["data"])
    whole, _ = build(DATASETS, config["data"] | {"train_size": None})
    spare = whole.subset(np.flatnonzero(~np.isin(whole.ids, train.ids)))
    search = Search(config, train, pool)
    policies = {}
    for name in rewards:
        began = time.perf_counter()
        policies[name] = search.policy(name)
        tell_policy(name, policies[name], time.perf_counter() - began)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for label, seed, scores in finals(config, train, [test, spare], policies, pool):
        for part, top1 in zip(PARTS, scores, strict=True):
            rows[part].append({"label": label, "seed": seed, "test/top1": top1})
        print(f"{label}, seed {seed}: {', '.join(f'{score:.4f}' for score in scores)}", flush=True)
    for part, images in zip(PARTS, (test, spare), strict=True):
        for name in rewards:
            others = {*rewards} - {name}
            rivals = [row for row in rows[part] if row["label"] not in others]
            table = ComparisonTable(
                rivals, over="augmentation", subject=name, metrics=["test/top1"]
            )
            print(f"\n{name}, {len(images)} {part} images\n\n{table.text()}")


def finals(
    config: dict[str, Any],
    train: ImageSet,
    sets: Sequence[ImageSet],
    policies: dict[str, Policy],
    pool: Executor,
) -> Iterator[tuple[str, int, list[float]]]:
    """Yield label, seed and top-1 on each of ``sets`` of the final trainings, seed by seed."""
    ready, images = prepare(config), {"train": train, "test": train}
    first = next(iter(policies.values()))  # of whose size the random policy is
    jobs: list[tuple[str, Entry, TrainJob]] = []
    for entry in ready.comparison.trainings(config, "final"):
        if entry.label in ready.comparison.rivals:
            jobs.append((entry.label, entry, final(ready, images, entry, first)))
            continue
        for name, policy in policies.items():
            jobs.append((name, entry, final(ready, images, entry, policy)))
    view = ClassifierView(build(VIEWS, config["view"]))
    scored = functools.partial(accuracies, sets=sets, view=view)
    found = pool.map(scored, [job for _, _, job in jobs])
    for (label, entry, _), scores in zip(jobs, found, strict=True):
        yield label, entry.number, scores


def toy(config: dict[str, Any], rewards: Sequence[str], pool: Executor) -> None:
    """Print how much of the strength of each reward's policy turns the bars."""
    search = Search(config, bars(40, seed=config["seed"]), pool)
    sizes = []
    for name in rewards:
        began = time.perf_counter()
        policy = search.policy(name)
        sizes.append(len(policy))
        tell_policy(name, policy, time.perf_counter() - began)
    drawn = [Policy.random(max(sizes), policy.depth, seed) for seed in range(20)]
    level, effect = (
        np.mean([turning_share(policy, strength) for policy in drawn])
        for strength in (by_level, by_effect)
    )
    print(
        f"20 random policies of {max(sizes)} sub-policies: {level:.1%} turning by level, "
        f"{effect:.1%} by effect"
    )


def tell_policy(name: str, policy: Policy, seconds: float) -> None:
    """Print what a policy is made of."""
    figures = policy.statistics()
    print(
        f"{name}: {turning_share(policy, by_level):.1%} turning by level, "
        f"{turning_share(policy, by_effect):.1%} by effect; {len(policy)} sub-policies, "
        f"{figures.fired_operations:.2f} operations an image, none in "
        f"{figures.no_op_probability:.0%}; search {seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sample", "bars"])
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rewards", nargs="+", choices=SCORES, default=SCORES)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    given = parser.parse_args()
    changes = [*(BARS if given.what == "bars" else ()), *given.set]
    schema = {"storage": Value(str, "runs"), "tracking": Tracking, **SCHEMA}
    config = load(given.config, schema, overrides=changes)
    print(f"{platform.machine()}, torch {torch.__version__}, {given.config.stem}, {given.set}")
    start()
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=context, initializer=start) as pool:
        {"sample": sample, "bars": toy}[given.what](config, given.rewards, pool)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    print(f"\n{time.perf_counter() - began:.0f} s, {cpu_s:.0f} CPU seconds")


if __name__ == "__main__":
    main()
