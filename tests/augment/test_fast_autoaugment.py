"""Density matching: formulas against loops, the evaluator against what it must not depend on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from pillow_evaluator import PillowImages, evaluate
from torch import Tensor, nn

from raykb.augment.fast_autoaugment import (
    SCORES,
    PolicyEvaluator,
    best,
    density_matching_scores,
    merge,
    policy_from,
    reward,
    search_space,
)
from raykb.augment.policy import Policy
from raykb.data.operations import NAMES
from raykb.data.views import CropFlipView
from raykb.engine.seeding import seed_everything

HARMLESS = Policy([[("Invert", 0.0, 0.5), ("Rotate", 0.0, 1.0)], [("Color", 0.0, 0.1)]])


def bright_half(count: int, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, 16, 16) with one half bright, and which: 0 the upper, 1 the lower."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = random.integers(30, 90, (count, channels, 16, 16))
    images[labels == 0, :, :8] += 110
    images[labels == 1, :, 8:] += 110
    return images.astype(np.uint8), labels.astype(np.int64)


def view(**changes: Any) -> CropFlipView:
    return CropFlipView(**({"mean": (0.4,) * 3, "std": (0.2,) * 3, "padding": 2} | changes))


def train(theta: nn.Module, images: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Train on the images as they are."""
    inputs, targets = view().plain(torch.from_numpy(images)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(theta.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theta(inputs), targets).backward()
        optimizer.step()
    return theta


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these are not worth waking a second thread for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def theta() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 5, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    )
    return train(network, *bright_half(256))


def evaluator(theta: nn.Module, **changes: Any) -> PolicyEvaluator:
    """An evaluator of the odd ones among 80 images; ids are not positions."""
    images, labels = bright_half(80, seed=1)
    given: dict[str, Any] = {
        "labels": labels,
        "ids": np.arange(80) * 3 + 1000,
        "indices": np.arange(1, 80, 2),
        "view": view(),
        "copies": 3,
    }
    return PolicyEvaluator(theta, changes.pop("images", images), **(given | changes))


def scores_of(figures: dict[str, float]) -> list[float]:
    return [figures[name] for name in SCORES]


# The formulas.


def test_search_space_has_three_variables_for_each_operation() -> None:
    space = search_space()
    assert len(space) == 30
    assert list(space)[:4] == ["policy_0_0", "prob_0_0", "level_0_0", "policy_0_1"]
    assert space["policy_4_1"] == NAMES
    assert space["prob_4_1"] == space["level_4_1"] == (0.0, 1.0)
    assert len(search_space(2, 3)) == 18


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 2), (12, 11)])
def test_policy_from_is_the_inverse_of_naming_the_variables(rows: int, columns: int) -> None:
    policy = Policy.random(rows, columns, 0)
    params = {
        f"{variable}_{i}_{j}": value
        for i, row in enumerate(policy.sub_policies)
        for j, triple in enumerate(row)
        for variable, value in zip(("policy", "prob", "level"), triple, strict=True)
    }
    assert params.keys() == search_space(rows, columns).keys()
    assert policy_from(params) == policy
    assert policy_from(dict(reversed(params.items()))) == policy


def test_policy_from_names_what_is_missing_and_what_is_unknown() -> None:
    params = {"policy_0_0": "Invert", "prob_0_0": 0.5, "prob_1_0": 1.0, "levle_0_0": 0.5}
    with pytest.raises(
        ValueError, match=r"missing \['level_0_0', 'level_1_0', 'policy_1_0'\]"
    ) as e:
        policy_from(params)
    assert "unknown ['levle_0_0']; allowed: the variables of search_space(2, 1)" in str(e.value)


@pytest.mark.parametrize(("copies", "count"), [(1, 1), (1, 7), (5, 1), (5, 64)])
def test_scores_equal_a_loop_over_images(copies: int, count: int) -> None:
    g = torch.Generator().manual_seed(copies + count)
    losses = torch.rand(copies, count, generator=g)
    hits = torch.rand(copies, count, generator=g) < 0.5
    scores = density_matching_scores(losses, hits)
    columns, right = losses.T.tolist(), hits.T.tolist()
    assert scores == pytest.approx(
        {
            "min_loss": sum(min(column) for column in columns) / count,
            "mean_loss": sum(sum(column) / copies for column in columns) / count,
            "max_accuracy": sum(any(column) for column in right) / count,
            "mean_accuracy": sum(sum(column) / copies for column in right) / count,
        }
    )
    assert scores["min_loss"] <= scores["mean_loss"]
    assert scores["max_accuracy"] >= scores["mean_accuracy"]
    if copies == 1:
        assert scores["min_loss"] == scores["mean_loss"]
        assert scores["max_accuracy"] == scores["mean_accuracy"]


def test_reward_is_to_be_maximised() -> None:
    scores = dict(zip(SCORES, (1.0, 2.0, 0.75, 0.5), strict=True))
    assert [reward(scores, name) for name in SCORES] == [-1.0, -2.0, 0.75, 0.5]
    with pytest.raises(ValueError, match=r"'minloss' \(did you mean 'min_loss'\?\); allowed: min"):
        reward(scores, "minloss")


def test_best_breaks_ties_by_number_and_ranks_nan_last() -> None:
    rewards = [0.1, float("nan"), 0.7, 0.3, 0.7, float("-inf")]
    candidates = [SimpleNamespace(number=n, reward=r) for n, r in enumerate(rewards)]
    for order in (candidates, candidates[::-1]):
        assert [candidate.number for candidate in best(order, 3)] == [2, 4, 3]
        assert [candidate.number for candidate in best(order, 9)] == [2, 4, 3, 0, 5, 1]
    with pytest.raises(ValueError, match="count: 0; allowed: 1 or more"):
        best(candidates, 0)


def test_merge_drops_duplicates_within_a_policy_and_none_across() -> None:
    twice = Policy([[("Invert", 0.1, 0.1)], [("Invert", 0.2, 0.2)], [("Color", 0.3, 0.3)]])
    once = Policy([[("Color", 0.4, 0.4)], [("Invert", 0.5, 0.5)]])
    assert merge([twice, once]) == Policy([*twice.sub_policies[::2], *once.sub_policies])


# The evaluator.


def test_a_policy_that_never_fires_scores_exactly_as_the_default_augmentation(
    theta: nn.Module,
) -> None:
    one = evaluator(theta, view=view(cutout=6))
    plain, harmless = one.score(None), one.score(HARMLESS)
    assert scores_of(plain) == scores_of(harmless)
    assert harmless["fired_operations"] == plain["fired_operations"] == 0.0
    assert harmless["seconds"] > 0.0


@pytest.mark.parametrize("copies", [1, 4])
def test_order_of_the_four_scores(theta: nn.Module, copies: int) -> None:
    one = evaluator(theta, copies=copies)
    for seed in range(5):
        figures = one.score(Policy.random(5, 2, seed))
        assert (figures["min_loss"] < figures["mean_loss"]) == (copies > 1)
        assert figures["max_accuracy"] >= figures["mean_accuracy"]
        assert (figures["max_accuracy"] == figures["mean_accuracy"]) or copies > 1


def test_one_seed_one_score_another_seed_or_split_another(theta: nn.Module) -> None:
    policy = Policy.random(5, 2, 0)
    one = evaluator(theta)
    scores = scores_of(one.score(policy))
    one.score(Policy.random(3, 4, 1))  # a deeper one in between changes nothing
    assert scores_of(one.score(policy)) == scores == scores_of(evaluator(theta).score(policy))
    for change in ({"seed": 1}, {"split": 1}):
        assert scores_of(evaluator(theta, **change).score(policy)) != scores


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_pieces_depend_on_neither_batch_size_nor_chunks(theta: nn.Module, batch_size: int) -> None:
    policy = Policy.random(5, 2, 3)
    losses, hits = evaluator(theta).evaluate_chunk(policy, 0)
    order = np.random.default_rng(0).permutation(40)
    chunks = [order[:5], order[5:21], order[21:]]
    one = evaluator(theta, batch_size=batch_size, chunks=chunks)
    for k, chunk in enumerate(chunks):
        some_losses, some_hits = one.evaluate_chunk(policy, k)
        torch.testing.assert_close(some_losses, losses[:, chunk], rtol=1e-5, atol=1e-5)
        assert torch.equal(some_hits, hits[:, chunk])


def test_budget_is_the_number_of_chunks_from_the_first_on(theta: nn.Module) -> None:
    policy = Policy.random(5, 2, 4)
    one = evaluator(theta, chunks=np.array_split(np.arange(40), 4))
    pieces = [one.evaluate_chunk(policy, k) for k in range(3)]
    losses, hits = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
    assert scores_of(one.score(policy, 3)) == scores_of(density_matching_scores(losses, hits))
    assert scores_of(one.score(policy)) == scores_of(one.score(policy, 4))
    for budget in (0, 5):
        with pytest.raises(ValueError, match=f"budget: {budget}; allowed: 1 to 4 chunks"):
            one.score(policy, budget)


class Recorder(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone(memory_format=torch.contiguous_format))
        return images.flatten(1)[:, :2]


@pytest.mark.parametrize("batch_size", [3, 9, 500])
def test_theta_is_shown_the_same_pixels_whatever_the_batch(batch_size: int) -> None:
    policy, whole, parts = Policy.random(5, 2, 6), Recorder(), Recorder()
    evaluator(whole, batch_size=10**6).evaluate_chunk(policy, 0)
    evaluator(parts, batch_size=batch_size).evaluate_chunk(policy, 0)
    pieces = [seen.unflatten(0, (3, -1)) for seen in parts.seen]
    assert torch.equal(torch.cat(pieces, dim=1).flatten(0, 1), whole.seen[0])


def test_fired_operations_are_counted(theta: nn.Module) -> None:
    always = Policy([[("Color", 1.0, 0.5), ("Rotate", 1.0, 0.5)], [("Rotate", 1.0, 0.5)]])
    fired = evaluator(theta).score(always)["fired_operations"]
    assert fired == pytest.approx(1.5, abs=0.15)


def test_images_may_be_a_read_only_memory_map(theta: nn.Module, tmp_path: Path) -> None:
    images, _ = bright_half(80, seed=1)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    policy = Policy.random(5, 2, 0)
    from_map = evaluator(theta, images=mapped).score(policy)
    assert scores_of(from_map) == scores_of(evaluator(theta).score(policy))


def test_theta_may_run_in_bfloat16(theta: nn.Module) -> None:
    policy = Policy.random(5, 2, 0)
    exact, rounded = evaluator(theta).score(policy), evaluator(theta, autocast=True).score(policy)
    assert rounded["mean_loss"] == pytest.approx(exact["mean_loss"], rel=0.05)
    assert rounded["mean_loss"] != exact["mean_loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_changes_no_pixel() -> None:
    policy, here, there = Policy.random(5, 2, 6), Recorder(), Recorder()
    evaluator(here).evaluate_chunk(policy, 0)
    evaluator(there, device="cuda").evaluate_chunk(policy, 0)
    torch.testing.assert_close(there.seen[0].cpu(), here.seen[0])


def test_grey_images(theta: nn.Module) -> None:
    images, _ = bright_half(80, channels=1)
    grey = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    one = evaluator(grey, images=images, view=view(mean=(0.4,), std=(0.2,)))
    assert 0.0 <= one.score(Policy([[(name, 1.0, 0.8)] for name in NAMES]))["mean_accuracy"] <= 1.0


def test_all_problems_of_an_evaluator_are_named_at_once(theta: nn.Module) -> None:
    with pytest.raises(ValueError, match="PolicyEvaluator:") as error:
        evaluator(
            theta,
            images=np.zeros((80, 3, 4, 4), np.float32),
            labels=np.zeros(79, np.int64),
            ids=np.zeros(80),
            indices=np.array([0, 80]),
            chunks=[np.array([2]), np.array([], np.int64)],
            copies=0,
            batch_size=0,
        )
    for line in (
        "images: float32 (80, 3, 4, 4); allowed: uint8 (N, C, H, W)",
        "labels: int64 (79,); allowed: int64 (80,), one for each image",
        "ids: float64 (80,); allowed: int64 (80,), one for each image",
        "indices: array([ 0, 80]); allowed: one or more numbers from 0 to 79",
        "chunks[0]: array([2]); allowed: one or more numbers from 0 to 1",
        "chunks[1]: array([], dtype=int64); allowed",
        "copies: 0; allowed: 1 or more",
        "batch_size: 0; allowed: 1 or more",
    ):
        assert f"\n  - {line}" in str(error.value)


# The method.


def ranks(values: Sequence[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def harm(policy: Policy) -> float:
    """Expected number of operations per image that make a bright half dark or move it away."""
    strength = {
        "Invert": lambda level: 1.0,
        "Solarize": lambda level: float(level < 0.8),
        "TranslateY": lambda level: abs(2 * level - 1),
    }
    triples = [triple for row in policy.sub_policies for triple in row]
    return sum(p * strength[name](level) for name, p, level in triples if name in strength)


def test_policies_that_destroy_what_the_class_is_rank_low(theta: nn.Module) -> None:
    one = evaluator(theta, view=view(padding=0, flip=False))
    policies = [Policy.random(5, 2, seed) for seed in range(100)]
    rewards = [reward(one.score(policy), "mean_loss") for policy in policies]
    spearman = np.corrcoef(ranks(rewards), ranks([harm(policy) for policy in policies]))[0, 1]
    assert spearman < -0.5


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.slow
def test_tpe_finds_a_lower_mean_loss_than_random_search(theta: nn.Module) -> None:
    one = evaluator(theta)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        params = {
            name: trial.suggest_categorical(name, choices)
            if isinstance(choices[0], str)
            else trial.suggest_float(name, *choices)
            for name, choices in search_space().items()
        }
        return one.score(policy_from(params))["mean_loss"]

    def lowest(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=200)
        return study.best_value

    tpe = [lowest(optuna.samplers.TPESampler(n_startup_trials=20, seed=s)) for s in range(5)]
    random = [lowest(optuna.samplers.RandomSampler(seed=s)) for s in range(5)]
    assert np.median(tpe) < np.median(random)


def test_mean_loss_agrees_with_an_evaluator_that_uses_pillow(theta: nn.Module) -> None:
    """Twenty policies within 3 combined standard errors each, and within 2 on average."""
    mean, std = (0.4,) * 3, (0.2,) * 3
    one = evaluator(theta, view=view(mean=mean, std=std, padding=4, cutout=6), copies=20)
    images, labels = bright_half(80, seed=1)
    pixels = images[1::2].transpose(0, 2, 3, 1).copy()

    def mean_and_variance(losses: Tensor) -> Tensor:
        return torch.stack([losses.mean(), losses.var(dim=0).mean() / losses.numel()]).double()

    ours, theirs = [], []
    seed_everything(0)
    for seed in range(20):
        policy = Policy.random(5, 2, seed)
        arguments = {"mean": mean, "std": std, "length": 6}
        reference = PillowImages(pixels, labels[1::2], policy.sub_policies, **arguments)
        ours.append(mean_and_variance(one.evaluate_chunk(policy, 0)[0]))
        losses, _ = evaluate(theta, reference, copies=20, workers=0)
        theirs.append(mean_and_variance(losses))
    difference, _ = (torch.stack(ours) - torch.stack(theirs)).unbind(1)
    variance = (torch.stack(ours) + torch.stack(theirs))[:, 1]
    assert (difference.abs() / variance.sqrt()).max() < 3.0
    assert difference.mean().abs() / variance.sum().sqrt() * 20 < 2.0
