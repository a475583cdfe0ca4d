"""AUROC: over all pairs, as scikit-learn has it."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from raykb.engine.seeding import generator
from raykb.metrics.detection import auroc


def test_it_is_the_share_of_pairs_in_order_and_ties_are_half():
    inside, outside = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0.5, 0.1])
    pairs = list(itertools.product(inside.tolist(), outside.tolist()))
    wanted = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auroc(inside, outside) == pytest.approx(wanted)
    assert wanted == pytest.approx(5 / 6)


@pytest.mark.parametrize("levels", [3, 1000])
def test_it_is_scikit_learns(levels):
    drawn = torch.randint(levels, (500,), generator=generator(0)).double()
    inside, outside = drawn[:180], 0.9 * drawn[180:].floor()
    labels = np.arange(500) < 180
    theirs = roc_auc_score(labels, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside) == pytest.approx(theirs, abs=1e-12)


def test_swapped_kinds_have_the_rest():
    a, b = torch.rand(2, 50, generator=generator(1))
    assert auroc(a, b) + auroc(b, a) == pytest.approx(1.0)
    assert auroc(a + 2, b) == 1.0


@pytest.mark.parametrize("wrong", [torch.empty(0), torch.tensor([0.1, float("nan")])])
def test_no_score_and_nan_are_refused(wrong):
    with pytest.raises(ValueError, match=r"outside: .* must be at least one"):
        auroc(torch.ones(3), wrong)
