import io
import math

import pytest
import torch
from shared_search import SMALL, a_search

from raykb.engine.loop import Worker, fit
from raykb.engine.recipe import Recipe
from raykb.nas.bilevel import SearchRecipe, halves
from raykb.nas.genotype import Genotype, SearchSpace
from raykb.nas.samplers import SAMPLERS
from raykb.nas.search import SearchBatch, search_figures
from raykb.nas.supernet import cost_table

PAIR = SearchSpace(("identity", "conv_3"))
SAMPLED = [(name, PAIR if "executed" in name else SMALL) for name in SAMPLERS]


def nothing(step, figures):
    return


def weights(training):
    return {n: w.clone() for n, w in training.parts["model"].state_dict().items()}


def differing(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(("name", "space"), SAMPLED)
def test_each_half_of_a_step_moves_its_own(name, space):
    training, architecture, _ = a_search(name, space=space)
    batches = list(training.batches(0))
    for number in range(2):  # warm-up
        training.step(batches[number], number)
    assert not architecture.alpha.any()
    before, alpha = weights(training), architecture.alpha.clone()
    training.step(batches[2]._replace(architecture=None), 2)
    assert differing(before, weights(training))
    assert torch.equal(alpha, architecture.alpha)
    for number in (2, 3):  # the first loss is a score function's baseline, and moves nothing
        training.step(batches[number], number)
    assert architecture.alpha.any()


@pytest.mark.parametrize(("name", "space"), SAMPLED)
def test_a_step_of_the_architecture_changes_no_bit_of_a_weight(name, space, monkeypatch):
    training, architecture, _ = a_search(name, space=space)
    batches = list(training.batches(0))
    optimizer = training.parts["optimizer"]
    training.step(batches[2], 2)
    monkeypatch.setattr(optimizer, "step", lambda: None)  # the weights' half is left out
    before, alpha = weights(training), architecture.alpha.clone()
    training.step(batches[3], 3)
    assert not differing(before, weights(training))
    assert not torch.equal(alpha, architecture.alpha)
    parameters = training.parts["model"].parameters()
    assert all(p.requires_grad and p.grad is None for p in parameters)


def test_in_the_warm_up_nothing_of_the_other_half_is_read():
    training, _, feeds = a_search()
    fit(training, log=nothing)
    assert feeds.weights.seen == [*range(6), "closed"]
    assert feeds.architecture.seen == [*range(4), "closed"]


@pytest.mark.parametrize("name", ["two_path", "straight_through_all", "score_function"])
def test_one_seed_gives_one_search_to_the_bit(name):
    alphas = []
    for seed in (0, 0, 1):
        training, architecture, _ = a_search(name, seed=seed)
        fit(training, log=nothing)
        alphas.append(architecture.alpha.detach())
    assert torch.equal(alphas[0], alphas[1])
    assert not torch.equal(alphas[0], alphas[2])


@pytest.mark.parametrize("name", ["two_path", "score_function"])
@pytest.mark.parametrize("stopped", [1, 5])
def test_a_search_that_was_stopped_goes_on_as_if_it_was_not(name, stopped):
    whole, expected, _ = a_search(name)
    fit(whole, log=nothing)

    files, steps = [], iter(range(1, 7))
    cut, _, _ = a_search(name)
    saved = fit(cut, log=nothing, save=files.append, stop=lambda: next(steps) == stopped)
    assert saved == stopped
    buffer = io.BytesIO()
    torch.save(files[-1], buffer)
    torch.manual_seed(99)
    rest, found, _ = a_search(name)
    buffer.seek(0)
    start = rest.restore(torch.load(buffer, weights_only=True))
    fit(rest, start=start, log=nothing)

    assert torch.equal(expected.alpha, found.alpha)
    assert not differing(weights(whole), weights(rest))
    assert whole.evaluate("test").details == rest.evaluate("test").details


def test_what_is_logged_and_evaluated():
    records = []
    training, *_ = a_search(cost_weight=0.1)
    fit(training, log=lambda step, figures: records.append((step, figures)))
    assert [step for step, _ in records] == [2, 4, 4, 6, 6]
    assert "train/loss_architecture" not in records[0][1]
    assert {"train/loss_architecture", "train/expected_cost", "train/lr"} <= {*records[1][1]}
    valid = records[2][1]
    assert {name for name in valid if "entropy" in name} == {
        f"valid/search/entropy_{kind}"
        for kind in ("reduction", "encoder_normal", "expansion", "decoder_normal")
    }
    assert 0 <= valid["valid/accuracy"] <= 1
    assert 0 <= valid["valid/search/identity_share"] <= 1
    assert 0 < valid["valid/search/expected_cost"] < 1
    assert all(math.isfinite(value) for _, figures in records for value in figures.values())


def test_the_genotype_is_among_the_details_and_its_hash_is_a_number_too():
    training, architecture, _ = a_search()
    fit(training, log=nothing)
    found = training.evaluate("test")
    genotype = Genotype(**found.details["genotype"]["cells"])
    assert found.details["genotype_hash"] == genotype.hash
    assert found.details["voxels"] == 128
    number = found.figures["test/search/genotype"]
    assert f"{int(number):013x}" == genotype.hash[:13]
    costs = cost_table(SMALL, training.parts["model"])
    own = search_figures(architecture, genotype, costs)
    assert {f"test/search/{name}": value for name, value in own.items()}.items() <= (
        found.figures.items()
    )


def test_an_evaluation_leaves_the_search_as_it_was():
    states = []
    for evaluated in (False, True):
        training, architecture, _ = a_search()
        batches = list(training.batches(0))
        for number in range(4):
            training.step(batches[number], number)
            if evaluated:
                training.evaluate("valid")
        states.append((architecture.alpha.detach(), weights(training)))
    assert torch.equal(states[0][0], states[1][0])
    assert not differing(states[0][1], states[1][1])


@pytest.mark.parametrize("name", ["two_path", "score_function"])
def test_a_loss_that_is_not_finite_stops_the_search_before_alpha_is(name):
    training, architecture, _ = a_search(name)
    fields = next(iter(training.batches(2))).weights
    broken = fields._replace(images=fields.images * float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss_architecture: nan at step 2, .*lower"):
        training.step(SearchBatch(fields, broken), 2)
    assert architecture.alpha.isfinite().all()


def test_the_cost_term_draws_the_expected_cost_to_its_target():
    found = []
    for target in (0.0, 0.9):
        training, _, _ = a_search(alpha_lr=1.0, cost_weight=100.0, cost_target=target)
        fit(training, log=nothing)
        found.append(training.evaluate("test").figures["test/search/expected_cost"])
    assert found[0] < 0.1 < 1 / 3 < 0.8 < found[1]  # a third of the operations cost something


def test_a_decay_draws_alpha_back_to_even_chances():
    norms = []
    for decay in (0.0, 10.0):
        training, architecture, _ = a_search(epochs=8, alpha_weight_decay=decay)
        fit(training, log=nothing)
        norms.append(float(architecture.alpha.detach().norm()))
    assert norms[1] < 0.7 * norms[0]


def test_a_search_is_rehearsed_without_data():
    training, _, _ = a_search(feeds=False)
    with pytest.raises(ValueError, match="feeds: None, which can be rehearsed"):
        training.batches(0)


# ---------------------------------------------------------------------------- arguments


def test_cases_are_halved_and_none_is_in_both():
    cases = [f"case_{i:02d}" for i in range(9)]
    weights, architecture = halves(cases, 0)
    assert len(weights) == 5
    assert len(architecture) == 4
    assert sorted(weights + architecture) == cases
    assert halves(cases[::-1], 0) == (weights, architecture)
    assert halves(cases, 1) != (weights, architecture)


@pytest.mark.parametrize("cases", [[], ["a"], ["a", "b", "a"]])
def test_too_few_cases_or_one_twice_are_refused(cases):
    with pytest.raises(ValueError, match=r"cases: .*must be two or more, each once"):
        halves(cases, 0)


def test_settings_of_a_search_are_checked_together():
    with pytest.raises(ValueError, match="alpha_lr: 0, must be above 0; rule: 'r1', must be"):
        SearchRecipe(alpha_lr=0, rule="r1")


def test_a_warm_up_as_long_as_the_search_is_refused():
    with pytest.raises(
        ValueError, match="warmup_epochs: 3, of 2 steps each, must end before the 6"
    ):
        a_search(warmup_epochs=3)


@pytest.mark.parametrize(
    ("worker", "recipe", "message"),
    [
        (Worker(size=2), {}, "workers: 2, must be 1"),
        (Worker(), {"ema_decay": 0.9}, "ema_decay: 0.9, must be 0"),
    ],
)
def test_what_a_search_has_no_use_for_is_refused(worker, recipe, message, monkeypatch):
    monkeypatch.setattr("shared_search.Worker", lambda: worker)
    monkeypatch.setattr("shared_search.Recipe", lambda **own: Recipe(**(own | recipe)))
    with pytest.raises(ValueError, match=message):
        a_search()
