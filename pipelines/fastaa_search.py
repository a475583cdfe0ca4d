"""Fast AutoAugment: search an augmentation policy by density matching, and say what it is worth.

One network per split is trained without the searched policy; policies are searched under which
these networks still recognise the split's held-out images; the best are merged; then a network is
trained with the result and with what it has to beat, over several seeds. With no option it runs
on the images that come with raykb, in minutes on two cores.

Paper: Lim et al., "Fast AutoAugment", NeurIPS 2019, arXiv:1905.00397.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from raykb.runtime.command_line import answer

    answer(__file__, __doc__)  # --help, before the imports below take their seconds

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raykb.assembly import (
    RECIPE,
    SECTIONS,
    Supervised,
    by_recipe,
    classifier_data,
    compared,
    network_of,
    rehearse_phases,
    training,
)
from raykb.augment.augmentations import AUGMENTATIONS, RIVALS, augmentation, view_after
from raykb.augment.contact_sheet import contact_sheet
from raykb.augment.density_matching import DensityMatching
from raykb.augment.fast_autoaugment import best, merge, policy_from, search_space
from raykb.augment.policy import Policy
from raykb.augment.settings import SearchSettings
from raykb.comparison import Comparison, Entry
from raykb.config import Problems, Section, build
from raykb.data.images import ImageSet
from raykb.data.splits import SPLITS, Split
from raykb.data.views import VIEWS
from raykb.engine.objective import OBJECTIVES
from raykb.engine.seeding import stream_seed
from raykb.later import Later
from raykb.runtime.job import launch
from raykb.runtime.resources import WORKERS, Phase, WorkerResources, workers_of
from raykb.runtime.session import Session, rows_of
from raykb.runtime.studies import Candidate, Halving, rounds_of_splits, scored
from raykb.runtime.train import Result
from raykb.runtime.work import TrainJob

report = Later("raykb.report")
DEFAULT = Path(__file__).parent / "configs" / "augment" / "fastaa_fashion_mnist_sample.yaml"
THETA, SEARCH, FINAL = "theta trainings", "policy search", "final trainings"
SCHEMA = SECTIONS | {
    "augmentation": Section(AUGMENTATIONS, given=("seed", "searched"), default="searched_policy"),
    "method": Section(OBJECTIVES, given=("task",), default="cross_entropy"),
    "splits": Section(SPLITS, given=("labels",), default="shuffle"),
    "theta": RECIPE,
    "search": SearchSettings,
    "final": RECIPE,
    "comparison": compared(over="augmentation", rivals=RIVALS, renamed={"augmentations": "rivals"}),
    "resources.theta": WORKERS,
    "resources.evaluators": WORKERS,
    "resources.final": WORKERS,
}


@dataclass
class Ready:
    """What a run is made of before anything starts."""

    data: Supervised
    settings: SearchSettings
    comparison: Comparison
    resources: dict[str, WorkerResources]
    phases: list[Phase]


def prepare(config: dict[str, Any]) -> Ready:
    """Open the data, and build every kind of training of the run without memory.

    Raises:
        ValueError: all that is wrong is named.
    """
    problems, resources = Problems(), workers_of(config)
    settings = build(SearchSettings, config["search"])
    comparison = build(Comparison, config["comparison"])
    with problems.at("data", config["data"]):
        data = Supervised.opened(config["data"])
    problems.refuse()
    rehearse_phases(
        config, OBJECTIVES, data.stand_in, data.shape, problems, phases=("theta", "final")
    )
    entries: list[Entry] = []
    with problems.at("comparison", config["comparison"]):
        entries = comparison.trainings(config)
    for entry in entries:  # a policy's file is wanted only after hours
        own = entry.label not in comparison.rivals
        with problems.at("augmentation" if own else f"comparison.rivals.{entry.label}"):
            stand_in = Policy.random(1, 1, 0)
            augmentation(entry.config["augmentation"], seed=entry.seed, searched=stand_in)
    problems.refuse()
    splits = config["splits"]["splits"]
    phases = [
        Phase(THETA, splits, resources["theta"]),
        Phase(SEARCH, splits * settings.evaluators_per_split, resources["evaluators"]),
        Phase(FINAL, len(entries), resources["final"]),
    ]
    return Ready(data, settings, comparison, resources, phases)


def fastaa_search(session: Session, ready: Ready) -> None:
    """Run search and comparison; what an earlier run of the directory finished is not redone."""
    config, settings = session.config, ready.settings
    session.warm(THETA, training, ready.resources["theta"])
    with session.reading("data"):
        train, test = ready.data.read()
        split = functools.partial(build, SPLITS, config["splits"])
        splits = settings.splits(train.labels, split, config["seed"])
    session.tell_data(train=train, test=test)
    images = session.share(train=train, test=test)
    images |= {"methods": OBJECTIVES, "data": classifier_data}

    jobs = [theta(ready, images | {"rows": rest}, config, n) for n, (rest, _) in enumerate(splits)]
    thetas = session.train_all(THETA, jobs)
    candidates = search(session, ready, train, splits, thetas)
    kept = {study: best(found, settings.keep) for study, found in scored(candidates).items()}
    policy = merge([policy_from(each.params) for found in kept.values() for each in found])
    tell_search(session, settings, candidates, kept, policy, train)

    entries = ready.comparison.trainings(config, "final")
    finals = [(entry, final(ready, images, entry, policy)) for entry in entries]
    results = session.compare(FINAL, ready.comparison, finals)
    about = {"search": session.searched()}
    session.tell(ready.comparison, rows_of(results), ["test/top1"], about=about)


# ---------------------------------------------------------------------- trainings


def theta(ready: Ready, images: dict[str, Any], config: dict[str, Any], split: int) -> TrainJob:
    """Return the training of the network of a split, on the images that it does not hold out."""
    seed, each = stream_seed(config["seed"], "theta", split), ready.resources["theta"]
    entry = Entry("theta", split, seed, split, by_recipe(config, "theta"))
    job = TrainJob.of(entry, training, each, name=f"theta/split-{split}", **images)
    return dataclasses.replace(job, params={"split": split})


def final(ready: Ready, images: dict[str, Any], entry: Entry, policy: Policy) -> TrainJob:
    """Return the training of an entry of the comparison, on all images."""
    given = augmentation(entry.config["augmentation"], seed=entry.seed, searched=policy)
    seen = {"view": view_after(given, entry.config["view"])}
    whole = dataclasses.replace(entry, config=by_recipe(entry.config | seen, "final"))
    arguments, each = images | {"augmentation": given}, ready.resources["final"]
    return TrainJob.of(whole, training, each, name=f"final/{entry.name}", **arguments)


# ---------------------------------------------------------------------- search


def search(
    session: Session,
    ready: Ready,
    train: ImageSet,
    splits: Sequence[Split],
    thetas: Sequence[Result],
) -> list[Candidate]:
    """Score B candidates for each split and round; return them all."""
    config, settings, each = session.config, ready.settings, ready.resources["evaluators"]
    return session.search(
        SEARCH,
        studies=rounds_of_splits(len(splits), settings.rounds, config["seed"]),
        width=settings.width,
        every_candidate_a_child=settings.every_candidate_a_child,
        space=search_space(settings.sub_policies, settings.operations),
        sampler_name=settings.sampler,
        per_group=settings.evaluators_per_split,
        score=DensityMatching(
            network=functools.partial(network_of, config, ready.data.stand_in),
            view=build(VIEWS, config["view"]),
            held_out=[part for _, part in splits],
            settings=settings,
            seed=config["seed"],
            device=each.device,
        ),
        shared={"train": train, "thetas": [result.state() for result in thetas]},
        resources=each,
        parts=settings.chunks,
        halving=Halving(reduction_factor=settings.halving_factor) if settings.chunks > 1 else None,
        retries=settings.retries,
        max_failed=settings.max_failed,
    )


def tell_search(
    session: Session,
    settings: SearchSettings,
    candidates: Sequence[Candidate],
    kept: dict[str, list[Candidate]],
    policy: Policy,
    train: ImageSet,
) -> None:
    """Write the policy, the history of all candidates, and the pictures of the search."""
    scores = {study: [candidate.reward for candidate in found] for study, found in kept.items()}
    session.write("policy.json", policy.to_json({"reward": settings.reward, "scores": scores}))
    files = report.search_files(
        [candidate.row() for candidate in candidates],
        settings.reward,
        usage=policy.statistics().usage,
        sheet=contact_sheet(policy, torch.from_numpy(train.images[:8])),
    )
    session.write_all(files)
    session.tell_kept(SEARCH, kept, "policy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        fastaa_search,
        description=__doc__,
        default=DEFAULT,
        schema=SCHEMA,
        experiment="fast-autoaugment",
        prepare=prepare,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
