"""What methods have in common beyond the contract of an objective (tests/contracts)."""

import pytest
import torch
from shared_methods import CLASSES, IDS, TRUTHS, batch, classifier, method, task

from raykb.engine.objective import Task
from raykb.semi import METHODS
from raykb.semi.pseudo_labels import counts, positions

# low enough that an untrained network is sure of something
SURE = {
    name: {"threshold": 0.3}
    for name in ("pseudo_label", "uda", "fixmatch", "flexmatch", "contrastive_regularization")
} | {"pseudo_label": {"threshold": 0.3, "ramp_up": 0.0}}
UNLABELLED = sorted(set(METHODS) - {"supervised"})
WITH_STRONG = sorted(set(UNLABELLED) - {"pseudo_label"})


def sure(name, **options):
    return method(name, **SURE.get(name, {}) | options)


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


@pytest.mark.parametrize("name", [n for n in UNLABELLED if hasattr(method(n), "threshold")])
def test_nothing_confident_is_exactly_no_loss_and_no_gradient(name):
    objective = unsure(name)
    model, seen = classifier(), batch()
    terms = objective(model, seen, 19)
    assert terms["mask_rate"] == 0
    for label in ("loss_unlabelled", "loss_contrast", "loss_fairness"):
        assert terms.get(label, 0.0) == 0.0
    terms["loss"].backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    labelled = terms["loss_labelled"]
    torch.nn.functional.cross_entropy(model(seen.images), seen.labels).backward()
    assert terms["loss"] == labelled
    assert all(not p.grad.any() for p in objective.parameters())  # of a head
    for gradient, parameter in zip(mine, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", UNLABELLED)
def test_without_weight_on_the_unlabelled_it_is_supervised(name):
    zero = {
        "contrastive_regularization": {"weight": 0.0},
        "freematch": {"fairness_weight": 0.0},
    }.get(name, {})
    objective = sure(name, unlabelled_weight=0.0, **zero)
    loss = objective(classifier(), batch(), 0)["loss"]
    alone = method("supervised")(classifier(), batch(), 0)["loss"]
    assert loss.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("name", UNLABELLED)
def test_the_figures_tell_of_pseudo_labels(name):
    model, seen = classifier(), batch()
    terms = sure(name)(model, seen, 0)
    labels = model(seen.weak).argmax(1)
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
    known, blind, model = sure(name), sure(name, told=task(truths=None)), classifier()
    terms, fewer = known(model, batch(), 0), blind(model, batch(), 0)
    hidden = {"pseudo_label_accuracy", "pseudo_label_precision", "correct_rate"}
    assert terms.keys() - fewer.keys() == hidden
    assert all(torch.equal(terms[label], fewer[label]) for label in fewer)


def test_precision_remembers_the_steps_that_had_confident_samples():
    watch = method("fixmatch").pseudo_labels
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


@pytest.mark.parametrize("name", UNLABELLED)
def test_a_task_without_unlabelled_ids_or_without_classes_is_refused(name):
    for classes, ids, said in ((CLASSES, None, "3 classes, ids None"), (1, IDS, "1 classes, ids")):
        with pytest.raises(ValueError, match=f"task: {said}.*; a method with pseudo-labels needs"):
            method(name, told=Task(classifier(), 20, classes, ids))


def test_an_id_that_the_task_does_not_know_is_named():
    assert positions(IDS, torch.tensor([144, 5])).tolist() == [7, 0]
    for strange in (4, 9, 145):
        with pytest.raises(ValueError, match=f"ids: {strange} is not among the 8 unlabelled"):
            positions(IDS, torch.tensor([5, strange]))


@pytest.mark.parametrize("labels", [[], [2], [0, 2, 2, 4, 0, 2]])
def test_labels_are_counted_as_bincount_does(labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    assert torch.equal(counts(labels, 5), torch.bincount(labels, minlength=5))
