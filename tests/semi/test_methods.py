"""The contract of an objective, held by every method."""

import copy
import pickle

import pytest
import torch
from shared_methods import CLASSES, IDS, OPTIONS, TRUTHS, batch, method, network, task

from raykb.engine.objective import objective_step
from raykb.semi import METHODS
from raykb.semi.batch import Task, positions

# low enough that an untrained network is sure of something
SURE = {
    name: {"threshold": 0.3}
    for name in ("pseudo_label", "uda", "fixmatch", "flexmatch", "contrastive_regularization")
} | {"pseudo_label": {"threshold": 0.3, "ramp_up": 0.0}}
UNLABELLED = sorted(set(METHODS) - {"supervised"})
WITH_STRONG = sorted(set(UNLABELLED) - {"pseudo_label"})


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def sure(name, **options):
    return method(name, **SURE.get(name, {}) | options)


def trained(objective, model, steps, start=0):
    """Train on and return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step, losses = objective_step(objective, model), []
    for number in range(start, start + steps):
        losses.append(step(batch(seed=number), number)["loss"].item())
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(model, number)
    return losses


@pytest.mark.parametrize(("labelled", "unlabelled"), [(1, 1), (4, 6)])
def test_terms_are_finite_scalars_and_only_the_loss_has_gradient(name, labelled, unlabelled):
    objective = sure(name)
    model = network(objective)
    for seed in (1, 2):
        terms = objective(model, batch(labelled, unlabelled, seed), 3)
        assert terms["loss"].requires_grad
        for label, term in terms.items():
            assert term.shape == (), label
            assert torch.isfinite(term), label
            assert label == "loss" or not term.requires_grad, label
        terms["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_every_parameter_changes_after_one_step(name):
    objective = sure(name)
    model = network(objective)
    before = copy.deepcopy(model.state_dict())
    trained(objective, model, 1, start=3)
    for label, value in model.state_dict().items():
        assert not torch.equal(value, before[label]), label


def test_a_float64_network_is_not_rounded(name):
    objective = sure(name)
    model, seen = network(objective).double(), batch()
    doubled = (part.double() if part.is_floating_point() else part for part in seen)
    assert objective(model, type(seen)(*doubled), 3)["loss"].dtype == torch.float64


def test_same_seed_same_terms(name):
    first, second = (
        objective(network(objective), batch(), 3) for objective in (sure(name), sure(name))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[label], second[label]) for label in first)


def test_a_restored_run_goes_on_alike(name):
    objective = sure(name)
    model = network(objective)
    trained(objective, model, 3)
    states = copy.deepcopy((objective.state_dict(), model.state_dict()))
    again = sure(name)
    twin = network(again, seed=7)
    again.load_state_dict(states[0])
    twin.load_state_dict(states[1])
    assert trained(objective, model, 2, start=3) == trained(again, twin, 2, start=3)
    terms, same = objective(model, batch(), 5), again(twin, batch(), 5)
    assert all(torch.equal(terms[label], same[label]) for label in terms)


def test_it_pickles(name):
    objective = sure(name)
    again = pickle.loads(pickle.dumps(objective))
    model = network(objective)
    assert torch.equal(objective(model, batch(), 0)["loss"], again(model, batch(), 0)["loss"])


class Shown(torch.nn.Module):
    """Gives out prepared logits and keeps an eye on their gradients."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


@pytest.mark.parametrize("name", [n for n in WITH_STRONG if n != "contrastive_regularization"])
def test_weak_views_get_no_gradient_and_strong_ones_do(name):
    shown = (3 * torch.randn(16, CLASSES, generator=torch.manual_seed(0))).requires_grad_()
    sure(name)(Shown(shown), batch(), 0)["loss"].backward()
    labelled, weak, strong = shown.grad.split([4, 6, 6])
    assert weak.abs().sum() == 0
    assert labelled.abs().sum() > 0
    assert strong.abs().sum() > 0


def unsure(name):
    """Return an objective, and such logits of unlabelled images that none passes its threshold."""
    objective = method(name)
    if name == "flexmatch":
        objective.selected[:6] = torch.arange(6) % CLASSES  # beta is 1 for all
    if name == "freematch":
        objective.threshold.fill_(1.0)
    return objective


@pytest.mark.parametrize("name", [n for n in UNLABELLED if n != "softmatch"])
def test_nothing_confident_is_exactly_no_loss_and_no_gradient(name):
    objective = unsure(name)
    model = network(objective)
    seen = batch()
    terms = objective(model, seen, 19)
    assert terms["mask_rate"] == 0
    for label in ("loss_unlabelled", "loss_contrast", "loss_fairness"):
        assert terms.get(label, 0.0) == 0.0
    terms["loss"].backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    labelled = terms["loss_labelled"]
    outputs = model(seen.images)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    torch.nn.functional.cross_entropy(outputs, seen.labels).backward()
    assert terms["loss"] == labelled
    for gradient, parameter in zip(mine, model.parameters(), strict=True):
        wanted = torch.zeros(()) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, wanted.expand_as(gradient), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", UNLABELLED)
def test_without_weight_on_the_unlabelled_it_is_supervised(name):
    zero = {
        "contrastive_regularization": {"weight": 0.0},
        "freematch": {"fairness_weight": 0.0},
    }.get(name, {})
    objective = sure(name, unlabelled_weight=0.0, **zero)
    model = network(objective)
    loss = objective(model, batch(), 0)["loss"]
    plain = model.classifier if name == "contrastive_regularization" else model
    assert loss.item() == pytest.approx(method("supervised")(plain, batch(), 0)["loss"].item())


@pytest.mark.parametrize("name", UNLABELLED)
def test_the_figures_tell_of_pseudo_labels(name):
    objective = sure(name)
    model = network(objective)
    seen = batch()
    terms = objective(model, seen, 0)
    outputs = model(seen.weak)
    labels = (outputs[0] if isinstance(outputs, tuple) else outputs).argmax(1)
    right = labels == TRUTHS[[IDS.tolist().index(i) for i in seen.ids.tolist()]]
    assert terms["pseudo_label_accuracy"] == right.float().mean()
    shares = [terms[f"class_share/{label}"].item() for label in range(CLASSES)]
    assert shares == pytest.approx([(labels == c).float().mean().item() for c in range(CLASSES)])
    others = [(labels == label).sum().item() - 1 for label in labels]
    assert terms["cluster_size"].item() == pytest.approx(sum(others) / len(others))
    assert 0 <= terms["correct_rate"] <= terms["mask_rate"] <= 1
    precision = terms["correct_rate"] / terms["mask_rate"]
    assert terms["pseudo_label_precision"].item() == pytest.approx(precision.item(), rel=1e-5)


@pytest.mark.parametrize("name", UNLABELLED)
def test_without_true_labels_the_rest_is_the_same(name):
    known = sure(name)
    blind = METHODS[name](task(truths=None), **OPTIONS.get(name, {}) | SURE.get(name, {}))
    model = network(known)
    terms, fewer = known(model, batch(), 0), blind(model, batch(), 0)
    hidden = {"pseudo_label_accuracy", "pseudo_label_precision", "correct_rate"}
    assert terms.keys() - fewer.keys() == hidden
    assert all(torch.equal(terms[label], fewer[label]) for label in fewer)


def test_precision_remembers_the_steps_that_had_confident_samples():
    watch = method("fixmatch").watch
    labels, none, every = TRUTHS[:2].clone(), torch.zeros(2), torch.ones(2)
    assert watch.figures(labels, none, IDS[:2])["pseudo_label_precision"] == 0
    assert watch.figures(labels, every, IDS[:2])["pseudo_label_precision"] == pytest.approx(1.0)
    later = watch.figures(labels.flip(0), none, IDS[:2])
    assert later["pseudo_label_precision"] == pytest.approx(1.0)
    assert later["pseudo_label_accuracy"] == 0
    mixed = watch.figures(labels.flip(0), every, IDS[:2])["pseudo_label_precision"].item()
    assert mixed == pytest.approx(0.99**2 / (0.99**2 + 1))


BAD = [
    ("fixmatch", {"threshold": 1.5}, r"threshold: 1.5, must be in 0..1"),
    ("pseudo_label", {"ramp_up": -1.0}, r"ramp_up: -1.0, must be in 0..1"),
    ("uda", {"temperature": 0.0}, r"temperature: 0.0, must be in 1e-06..inf"),
    ("uda", {"annealing": "sudden"}, r"annealing: 'sudden', must be one of none, linear, expo"),
    ("flexmatch", {"unlabelled_weight": -1.0}, r"unlabelled_weight: -1.0, must be in 0..inf"),
    ("freematch", {"clip": 2.0, "momentum": 3.0}, r"momentum: 3.0.*; clip: 2.0, must be in 0..1"),
    ("softmatch", {"width": 0.0}, r"width: 0.0, must be in 1e-06..inf"),
    ("contrastive_regularization", {"weight": -1.0}, r"weight: -1.0, must be in 0..inf"),
    ("contrastive_regularization", {"anchors": "some"}, r"anchors: 'some', must be 'confident' or"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_settings_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        method(name, **options)


def test_a_task_that_contradicts_itself_is_refused_with_every_problem():
    with pytest.raises(
        ValueError,
        match=r"classes: 1, must be at least 2; steps: 0, must be at least 1; ids: must ascend, "
        r"each once; sort them; truths: \(3,\) for ids of shape \(2,\)",
    ):
        Task(1, 0, torch.tensor([2, 2]), torch.zeros(3))


def test_an_id_that_the_task_does_not_know_is_named():
    assert positions(IDS, torch.tensor([144, 5])).tolist() == [7, 0]
    for strange in (4, 9, 145):
        with pytest.raises(ValueError, match=f"ids: {strange} is not among the 8 unlabelled"):
            positions(IDS, torch.tensor([5, strange]))
