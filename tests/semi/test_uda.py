import math

import pytest
import torch
from shared_methods import STRONG, WEAK, batch, classifier, logits, method

from raykb.semi.uda import annealed_loss, annealed_threshold, uda_loss


def test_the_golden_value_and_what_it_is_without_sharpening():
    assert uda_loss(WEAK, STRONG, 0.8, 0.4).item() == pytest.approx(0.367676, abs=5e-7)
    assert uda_loss(WEAK, STRONG, 0.8, 1.0).item() == pytest.approx(0.387556, abs=5e-7)


def test_sharpening_does_not_leave_the_range_of_half_precision():
    weak = torch.tensor([[6e4, -6e4]], dtype=torch.float16)  # 6e4 / 0.4 is inf there
    assert uda_loss(weak, torch.zeros_like(weak), 0.8, 0.4).item() == pytest.approx(math.log(2))


def test_confidence_is_that_before_sharpening():
    unsure = logits([1, 0, 0])  # 0.576, sharpened 0.859
    assert uda_loss(unsure, STRONG[:1], 0.8, 0.4) == 0


def test_the_target_gets_no_gradient():
    weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
    uda_loss(weak, strong, 0.8, 0.4).backward()
    assert weak.grad is None
    assert strong.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("annealing", "middle"),
    [("linear", 0.5), ("exponential", math.exp(-2.5)), ("logarithmic", 1 - math.exp(-2.5))],
)
def test_the_threshold_of_labelled_samples_rises_from_chance(annealing, middle):
    start, half, end = (annealed_threshold(t, 4, annealing) for t in (0.0, 0.5, 1.0))
    assert half == pytest.approx(0.25 + 0.75 * middle)
    assert 0.25 <= start <= 0.26
    assert 0.99 <= end <= 1.0


def test_labelled_samples_that_are_known_too_well_are_dropped():
    labels = torch.tensor([0, 0, 1])
    losses = torch.nn.functional.cross_entropy(WEAK, labels, reduction="none")
    assert annealed_loss(WEAK, labels, 0.9).item() == pytest.approx(losses[1].item() / 3)
    assert annealed_loss(WEAK, labels, 1.0).item() == pytest.approx(losses.mean().item())


def test_annealing_reaches_the_objective():
    objective = method("uda", annealing="linear", threshold=0.3)
    model = classifier()
    early, late = (objective(model, batch(), step)["loss_labelled"] for step in (0, 19))
    assert early == 0
    assert late > 0
    terms = method("uda", temperature=1.0, threshold=0.3, unlabelled_weight=3.0)(model, batch(), 0)
    assert terms["loss"].item() == pytest.approx(
        (terms["loss_labelled"] + 3.0 * terms["loss_unlabelled"]).item()
    )
    sharp = method("uda", temperature=0.4, threshold=0.3)(model, batch(), 0)
    assert sharp["loss_unlabelled"] != terms["loss_unlabelled"]
