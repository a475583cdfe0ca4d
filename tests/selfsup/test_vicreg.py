import math

import pytest
import torch
from shared_views import batch, drawn, method, network

from raykb.selfsup.vicreg import covariance_loss, variance_loss, vicreg_parts


def columns(rows):
    return [[row[j].item() for row in rows] for j in range(rows.shape[1])]


def covariance(first, second):
    means = [sum(values) / len(values) for values in (first, second)]
    products = [(a - means[0]) * (b - means[1]) for a, b in zip(first, second, strict=True)]
    return sum(products) / (len(first) - 1)


@pytest.mark.parametrize(("count", "width", "scale"), [(2, 1, 0.1), (5, 3, 0.3), (9, 4, 1.0)])
def test_variance_and_covariance_are_the_formulas_entry_by_entry(count, width, scale):
    rows = scale * drawn(count, width)
    own = columns(rows)
    hinges = [max(0.0, 1 - math.sqrt(covariance(c, c) + 1e-4)) for c in own]
    assert variance_loss(rows).item() == pytest.approx(sum(hinges) / width)
    others = [covariance(own[i], own[j]) ** 2 for i in range(width) for j in range(width) if i != j]
    assert covariance_loss(rows).item() == pytest.approx(sum(others) / width)


def test_the_parts_of_two_views():
    first, second = 0.3 * drawn(5, 3), 0.3 * drawn(5, 3, seed=1)
    parts = vicreg_parts(first, second)
    assert parts.invariance.item() == pytest.approx(((first - second) ** 2).mean().item())
    halves = (variance_loss(first) + variance_loss(second)) / 2
    assert parts.variance.item() == pytest.approx(halves.item())
    both = covariance_loss(first) + covariance_loss(second)
    assert parts.covariance.item() == pytest.approx(both.item())


def test_views_that_agree_and_are_white_have_no_loss_and_collapsed_ones_that_of_variance():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert [part.item() for part in vicreg_parts(rows, rows)] == pytest.approx([0, 0, 0])
    same = torch.ones(4, 2, dtype=torch.float64)
    assert [part.item() for part in vicreg_parts(same, same)] == pytest.approx([0, 0.99, 0])


def test_its_gradient_is_that_of_its_values():
    rows = 0.3 * drawn(4, 3), 0.3 * drawn(4, 3, seed=1)
    rows = [own.requires_grad_() for own in rows]
    assert torch.autograd.gradcheck(lambda a, b: sum(vicreg_parts(a, b)), rows)


def test_the_objective_weighs_the_parts():
    weights = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 5.0}
    objective, model = method("vicreg", **weights), network()
    seen = batch(objective)
    rows = objective.head(model.features(seen.views.flatten(0, 1))).unflatten(0, (6, 2))
    parts = vicreg_parts(*rows.unbind(1))
    terms = objective(model, seen, 0)
    wanted = 2 * parts.invariance + 3 * parts.variance + 5 * parts.covariance
    assert terms["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, part in parts._asdict().items():
        assert terms[f"loss_{name}"].item() == pytest.approx(part.item(), rel=1e-5)


def test_settings_are_kept_or_refused():
    hidden = [method("vicreg", **o).head[0].out_features for o in ({}, {"hidden": None})]
    assert hidden == [5, 4]
    with pytest.raises(ValueError, match=r"variance_weight: -1\.0, must.*; covariance_weight: nan"):
        method("vicreg", variance_weight=-1.0, covariance_weight=math.nan)
