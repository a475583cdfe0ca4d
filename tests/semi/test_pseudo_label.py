import pytest
import torch
from shared_methods import STRONG, WEAK, batch, classifier, method

from raykb.semi.fixmatch import fixmatch_loss
from raykb.semi.pseudo_label import pseudo_label_loss, ramp_up


def test_it_is_fixmatch_whose_strong_view_is_the_weak_one():
    assert pseudo_label_loss(WEAK, 0.95) == fixmatch_loss(WEAK, WEAK, 0.95)


def test_the_gradient_goes_through_the_very_logits_that_were_confident():
    logits = WEAK.clone().requires_grad_()
    pseudo_label_loss(logits, 0.95).backward()
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("step", "share", "weight"),
    [(0, 0.4, 0), (20, 0.4, 0.5), (40, 0.4, 1), (90, 0.4, 1), (0, 0, 1)],
)
def test_the_weight_climbs_over_the_first_share_of_the_training(step, share, weight):
    assert ramp_up(step, 100, share) == pytest.approx(weight)


def test_the_strong_view_is_not_looked_at_and_the_ramp_counts():
    objective = method("pseudo_label", threshold=0.3, unlabelled_weight=2.0, ramp_up=0.5)
    model = classifier()
    seen = batch()
    terms = objective(model, seen, 5)  # of 20, half way up
    blind = objective(model, seen._replace(strong=torch.full_like(STRONG, torch.nan)), 5)
    assert terms["loss"] == blind["loss"]
    assert terms["loss"].item() == pytest.approx(
        (terms["loss_labelled"] + 0.5 * 2.0 * terms["loss_unlabelled"]).item()
    )
