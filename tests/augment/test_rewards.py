"""What a reward is blind to: searches on bars whose class is their angle."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from bars import ANGLES, bars, by_effect, by_level, turning_share

from raykb.augment.fast_autoaugment import (
    PolicyEvaluator,
    best,
    merge,
    policy_from,
    reward,
    search_space,
)
from raykb.augment.policy import Policy
from raykb.augment.settings import SearchSettings
from raykb.data.splits import stratified_shuffle_splits
from raykb.data.views import CropFlipView
from raykb.engine.seeding import generator, keyed_uniform, seed_everything
from raykb.models import MODELS
from raykb.runtime.open_study import OpenStudy
from raykb.runtime.studies import Study

FILE = (
    Path(__file__).resolve().parents[2]
    / "pipelines/configs/augment/fastaa_fashion_mnist_sample.yaml"
)
DEFAULT = vars(SearchSettings(**yaml.safe_load(FILE.read_text())["search"]))
VIEW = CropFlipView(mean=[0.3], std=[0.25], padding=1, flip=False)
CANDIDATES = 80


def trained(data, rows, seed):
    """A small network that has learnt the bars at ``rows``."""
    seed_everything(seed)
    network = MODELS["small_convnet"](ANGLES, 1, width=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    images, labels = (torch.from_numpy(array[rows]) for array in (data.images, data.labels))
    for step in range(120):
        chosen = torch.randperm(len(rows), generator=generator(seed, "order", step))[:64]
        uniforms = keyed_uniform(step, data.ids[rows][chosen], VIEW.draws)
        loss = F.cross_entropy(network(VIEW(images[chosen], uniforms)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@functools.cache
def evaluators():
    """Two splits of 288 bars of 16 x 16 pixels, each with a network and what it has not seen."""
    data = bars(24, side=16, noise=0.05)
    splits = stratified_shuffle_splits(data.labels, splits=2, test_fraction=0.4)
    return [
        PolicyEvaluator(
            trained(data, rest, seed),
            data.images,
            labels=data.labels,
            ids=data.ids,
            indices=held_out,
            view=VIEW,
            copies=DEFAULT["copies"],
            split=seed,
        )
        for seed, (rest, held_out) in enumerate(splits)
    ]


def found(name):
    """The policy that the default's search finds on the bars by the score called ``name``."""
    kept = []
    for split, evaluator in enumerate(evaluators()):
        study = OpenStudy(
            Study(f"split-{split}", f"split-{split}", split, {}),
            space=search_space(DEFAULT["sub_policies"], DEFAULT["operations"]),
            width=CANDIDATES,
            sampler_name=DEFAULT["sampler"],
        )
        scored = []
        while study.to_ask:
            asked, _ = study.ask()
            scores = evaluator.score(policy_from(asked.params))
            asked.figures = {"reward": reward(scores, name)}
            asked.status = "finished"
            study.tell(asked)
            scored.append(asked)
        kept += best(scored, DEFAULT["keep"])
    return merge([policy_from(candidate.params) for candidate in kept])


def test_the_networks_know_the_bars():
    for evaluator in evaluators():
        assert evaluator.score(None)["mean_accuracy"] > 0.9


@pytest.mark.parametrize(("strength", "share"), [(by_level, 3 / 15), (by_effect, 1 / 6)])
def test_a_random_policy_turns_the_bars(strength, share):
    shares = [turning_share(Policy.random(50, 2, seed), strength) for seed in range(50)]
    assert np.mean(shares) == pytest.approx(share, abs=0.015)


def test_the_default_reward_leaves_out_what_destroys_the_label():
    policy = found(DEFAULT["reward"])
    assert turning_share(policy, by_level) < 0.1
    assert turning_share(policy, by_effect) < 0.1


def test_one_recognised_copy_is_enough_for_the_official_reward():
    policy = found("max_accuracy")
    assert turning_share(policy, by_level) > 0.1
    assert turning_share(policy, by_effect) > 0.1
