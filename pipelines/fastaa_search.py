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

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from raykb import report
from raykb.augment.augmentations import AUGMENTATIONS, Augmentation, FromPolicy
from raykb.augment.classifier import classifier_training
from raykb.augment.contact_sheet import contact_sheet
from raykb.augment.density_matching import DensityMatching
from raykb.augment.fast_autoaugment import SCORES, best, merge, policy_from, search_space
from raykb.augment.fast_autoaugment import Candidate as Scored
from raykb.augment.policy import Policy
from raykb.augment.settings import SEARCHED, Comparison, SearchSettings
from raykb.config import Section, build
from raykb.data.datasets import DATASETS
from raykb.data.images import ImageSet
from raykb.data.splits import SPLITS, stratified_chunks, stratified_subset
from raykb.data.views import VIEWS, CropFlipView
from raykb.engine.optim import OPTIMIZERS, SCHEDULES
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import stream_seed
from raykb.metrics.classification import paired_difference
from raykb.models import MODELS
from raykb.runtime.job import launch
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.studies import Candidate, Study, searched
from raykb.runtime.train import Result, share
from raykb.runtime.tune import Halving
from raykb.runtime.work import TrainJob

DEFAULT = Path(__file__).parent / "configs" / "augment" / "fastaa_fashion_mnist_sample.yaml"
THETA, SEARCH, FINAL = "theta trainings", "policy search", "final trainings"
SCHEMA = {
    "seed": int,
    "data": DATASETS,
    "view": VIEWS,
    "model": Section(MODELS, given=("classes", "channels")),
    "optimizer": Section(OPTIMIZERS, given=("model",)),
    "schedule": SCHEDULES,
    "splits": Section(SPLITS, given=("labels",)),
    "theta": Recipe,
    "search": SearchSettings,
    "final": Recipe,
    "comparison": Comparison,
    "resources.theta": WorkerResources,
    "resources.evaluators": WorkerResources,
    "resources.final": WorkerResources,
}


def plan(config: dict[str, Any]) -> list[Phase]:
    """Return the phases of a run: how many pieces of work, and what each of them takes."""
    splits = config["splits"].get("splits", 5)
    search, comparison = settings(config)
    each = {name: build(WorkerResources, part) for name, part in config["resources"].items()}
    for name in ("theta", "final"):
        build(Recipe, config[name]).check_data_parallel(each[name].workers)
    build(OPTIMIZERS, config["optimizer"], model=torch.nn.Linear(1, 1))  # else a worker refuses
    return [
        Phase(THETA, splits, each["theta"]),
        Phase(SEARCH, splits * search.evaluators_per_split, each["evaluators"]),
        Phase(FINAL, len(comparison.augmentations) * comparison.seeds, each["final"]),
    ]


def settings(config: dict[str, Any]) -> tuple[SearchSettings, Comparison]:
    """Return the settings of the search and of the comparison."""
    return build(SearchSettings, config["search"]), build(Comparison, config["comparison"])


def fastaa_search(session: Session) -> None:
    """Run search and comparison; what an earlier run of the directory finished is not redone."""
    config = session.config
    choice, comparison = settings(config)
    each = {name: build(WorkerResources, part) for name, part in config["resources"].items()}
    session.warm(THETA, classifier_training, each["theta"])
    with session.reading("data"):
        train, test = build(DATASETS, config["data"])
        splits = draw_splits(config, train.labels)
    tell_data(session, train, test)
    trainings = Trainings(config, {"train": share(train), "test": share(test)})

    thetas = session.train(
        THETA,
        [trainings.theta(split, rest) for split, (rest, _) in enumerate(splits)],
        each["theta"],
    )
    candidates = search(session, train, [held_out for _, held_out in splits], thetas)
    kept = {study: best(scored, choice.keep) for study, scored in by_study(candidates).items()}
    policy = merge([candidate.policy for scored in kept.values() for candidate in scored])
    tell_search(session, candidates, kept, policy, train)

    finals = session.train(
        FINAL,
        [
            trainings.final(name, seed, policy, len(train))
            for seed in range(comparison.seeds)
            for name in comparison.augmentations
        ],
        each["final"],
    )
    tell_comparison(session, finals)


def draw_splits(config: dict[str, Any], labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each split's positions to train on and to hold out, of the images searched on."""
    choice, _ = settings(config)
    drawn = stratified_subset(labels, choice.images or len(labels), seed=config["seed"])
    splits = build(SPLITS, config["splits"], labels=labels[drawn])
    for _, held_out in splits:  # refused now rather than after the theta trainings
        stratified_chunks(labels[drawn], held_out, choice.chunks)
    return [(drawn[rest], drawn[np.sort(held_out)]) for rest, held_out in splits]


class Trainings:
    """Makes the jobs of a run: what differs between them is said where they are made."""

    def __init__(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        self._config = config
        self._same = data | {name: config[name] for name in ("model", "optimizer", "schedule")}
        self._view = build(VIEWS, config["view"])

    def theta(self, split: int, rest: np.ndarray) -> TrainJob:
        """Return the training of the network of ``split`` on the ``rest`` that it does not hold."""
        seed = stream_seed(self._config["seed"], "theta", split)
        default = AUGMENTATIONS["cutout"]()
        params = {"split": split, "augmentation": "cutout"}
        return self._job(f"theta/split-{split}", "theta", seed, default, rest, len(rest), params)

    def final(self, name: str, seed: int, policy: Policy, images: int) -> TrainJob:
        """Return the training with augmentation ``name`` on all images; same seed, same start."""
        own_seed = stream_seed(self._config["seed"], "final", seed)
        augmentation = self._augmentation(name, own_seed, policy)
        params = {"augmentation": name, "seed_number": seed}
        job = f"final/{name}/seed-{seed}"
        return self._job(job, "final", own_seed, augmentation, None, images, params)

    @staticmethod
    def _augmentation(name: str, seed: int, policy: Policy) -> Augmentation:
        if name == SEARCHED:
            return FromPolicy(policy, seed)
        if name == "random_policy":
            return FromPolicy(Policy.random(len(policy), policy.depth, seed), seed)
        return AUGMENTATIONS[name](**({} if name in ("none", "cutout") else {"seed": seed}))

    def _job(
        self,
        name: str,
        section: str,
        seed: int,
        augmentation: Augmentation,
        indices: np.ndarray | None,
        images: int,
        params: dict[str, Any],
    ) -> TrainJob:
        recipe = build(Recipe, self._config[section])
        view = self._view
        if isinstance(view, CropFlipView) and not augmentation.cutout:
            view = dataclasses.replace(view, cutout=0)
        own = {"recipe": recipe, "view": view, "augmentation": augmentation, "indices": indices}
        per_epoch = recipe.steps_per_epoch(images)
        return TrainJob(
            name,
            classifier_training,
            self._same | own | {"seed": seed},
            seed,
            save_every=recipe.save_every_epochs * per_epoch,
            log_every=per_epoch,
            params=params,
        )


def search(
    session: Session, train: ImageSet, held_out: Sequence[np.ndarray], thetas: Sequence[Result]
) -> list[Candidate]:
    """Score B candidates for each split and round; return them all."""
    config, (choice, _) = session.config, settings(session.config)
    each = build(WorkerResources, config["resources"]["evaluators"])
    best_so_far: dict[str, float] = {}

    def on_told(candidate: Candidate) -> None:
        fields, step = candidate.study.fields, candidate.number
        run = session.child(f"search/split-{fields['split']}", phase=SEARCH)
        step += fields["round"] * choice.width
        if candidate.status == "finished":
            top = max(best_so_far.get(run.key, -np.inf), candidate.figures["reward"])
            best_so_far[run.key] = top
            figures = {f"search/{name}": value for name, value in candidate.figures.items()}
            run.log(step, figures | {"search/best": top})
        if choice.every_candidate_a_child:
            child = session.child(f"{candidate.study.name}/{candidate.number:04d}", phase=SEARCH)
            child.params(candidate.params)
            child.log(0, candidate.figures)
            child.finish("FINISHED" if candidate.status == "finished" else "FAILED")

    return session.search(
        SEARCH,
        len(held_out) * choice.rounds * choice.width,
        on_told,
        studies=[
            Study(
                f"split-{split}/round-{turn}",
                f"split-{split}",
                stream_seed(config["seed"], "study", split, turn) % 2**32,
                {"split": split, "round": turn},
            )
            for split in range(len(held_out))
            for turn in range(choice.rounds)
        ],
        space=search_space(choice.sub_policies, choice.operations),
        width=choice.width,
        sampler_name=choice.sampler,
        per_group=choice.evaluators_per_split,
        score=DensityMatching(
            model=config["model"],
            view=build(VIEWS, config["view"]),
            held_out=held_out,
            chunks=[
                stratified_chunks(train.labels[part], np.arange(len(part)), choice.chunks)
                for part in held_out
            ],
            copies=choice.copies,
            reward=choice.reward,
            seed=config["seed"],
            batch_size=choice.batch_size,
            device=each.device,
            autocast=choice.precision == "bf16",
        ),
        shared={"train": train, "thetas": [theta.state() for theta in thetas]},
        resources=each,
        parts=choice.chunks,
        halving=Halving(reduction_factor=choice.halving_factor) if choice.chunks > 1 else None,
        retries=choice.retries,
    )


def by_study(candidates: Sequence[Candidate]) -> dict[str, list[Scored]]:
    """Return the candidates that were scored to the end, by study."""
    studies: dict[str, list[Scored]] = {}
    for candidate in candidates:
        if candidate.status == "finished":
            policy = policy_from(candidate.params)
            scored = Scored(candidate.number, candidate.figures["reward"], policy)
            studies.setdefault(candidate.study.name, []).append(scored)
    return studies


def tell_data(session: Session, train: ImageSet, test: ImageSet) -> None:
    """Say what is trained and tested on, and what had to be left out."""
    skipped = train.skipped + test.skipped
    session.say(f"{len(train)} training images, {len(test)} test images, {len(skipped)} skipped")
    session.parent.log(0, {"data/train": len(train), "data/test": len(test)})
    session.parent.log(0, {"data/skipped": len(skipped)})
    if skipped:
        session.write("skipped.txt", "\n".join(skipped))


def tell_search(
    session: Session,
    candidates: Sequence[Candidate],
    kept: dict[str, list[Scored]],
    policy: Policy,
    train: ImageSet,
) -> None:
    """Write the policy, the history of all candidates, and the pictures of the search."""
    choice, _ = settings(session.config)
    history = pd.DataFrame([row(candidate) for candidate in candidates])
    scores = {study: [candidate.reward for candidate in scored] for study, scored in kept.items()}
    session.write("policy.json", policy.to_json({"reward": choice.reward, "scores": scores}))
    session.write("history.parquet", history.to_parquet())
    sheet = contact_sheet(policy, torch.from_numpy(train.images[:8]))
    figures = {
        "search_history.png": report.search_history(history, choice.reward),
        "operation_use.png": report.operation_use(policy.statistics().usage),
        "contact_sheet.png": report.image_columns(sheet),
    }
    for name, figure in figures.items():
        session.write(name, report.png(figure))
    params = {(c.study.name, c.number): c.params for c in candidates}
    for study, scored in kept.items():
        for rank, candidate in enumerate(scored):
            child = session.child(f"policy/{study}/rank-{rank:02d}", phase=SEARCH)
            child.params(params[study, candidate.number])
            child.log(candidate.number, {"search/reward": candidate.reward})
            child.finish()


def row(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as a row of the history."""
    scores = {name: candidate.figures.get(name) for name in (*SCORES, "reward", "seconds")}
    outcome = {"number": candidate.number, "status": candidate.status, "error": candidate.error}
    return candidate.study.fields | outcome | scores | candidate.params


def tell_comparison(session: Session, finals: Sequence[Result]) -> None:
    """Write and print what the policy is worth: mean, sd and paired difference over seeds."""
    places = [result.name.split("/") for result in finals]  # final/<method>/seed-<number>
    results = pd.DataFrame(
        {
            "method": [method for _, method, _ in places],
            "seed": [int(seed.removeprefix("seed-")) for _, _, seed in places],
            "top1": [result.metrics["test/top1"] for result in finals],
        }
    )
    table = report.comparison(results, subject=SEARCHED, interval=paired_difference)
    text = report.comparison_text(table, subject=SEARCHED)
    seconds, candidates = searched(session.storage)
    summary = {
        "schema": 1,
        "table": json.loads(table.to_json(orient="records")),
        "results": json.loads(results.to_json(orient="records")),
        "search": {
            "candidates": candidates,
            "seconds": seconds,
            "evaluations_per_second": candidates / seconds,
        },
    }
    session.write("results.json", json.dumps(summary, indent=1))
    figure = report.comparison_figure(results, table, subject=SEARCHED)
    session.write("final_comparison.png", report.png(figure))
    for row in summary["table"]:
        session.parent.log(0, {f"test/top1/{row['method']}": row["mean"]})
    session.parent.log(0, {f"search/{name}": value for name, value in summary["search"].items()})
    print(f"\n{text}\n\n{candidates} candidates in {seconds:.0f} s of search")
    print("A difference is one only if its interval leaves out 0.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    return launch(
        fastaa_search,
        description=__doc__,
        default=DEFAULT,
        schema=SCHEMA,
        plan=plan,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main())
