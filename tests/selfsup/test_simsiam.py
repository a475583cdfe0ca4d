import pytest
import torch
from shared_views import batch, drawn, method, network

from raykb.selfsup.simsiam import negative_cosine


def test_it_is_the_formula_row_by_row():
    predictions, projections = drawn(5, 4), drawn(5, 4, seed=1)
    cosines = [
        (p @ z / (p.norm() * z.norm())).item()
        for p, z in zip(predictions, projections, strict=True)
    ]
    loss = negative_cosine(predictions, projections)
    assert loss.item() == pytest.approx(-sum(cosines) / 5)


@pytest.mark.parametrize(("factor", "wanted"), [(3.0, -1.0), (-0.5, 1.0)])
def test_it_ends_at_one_where_both_have_one_direction(factor, wanted):
    rows = drawn(4, 3)
    assert negative_cosine(rows, factor * rows).item() == pytest.approx(wanted)


def test_predictions_get_gradient_and_projections_none():
    predictions, projections = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    negative_cosine(predictions, projections).backward()
    assert predictions.grad.abs().sum() > 0
    assert projections.grad is None
    assert torch.autograd.gradcheck(lambda p: negative_cosine(p, projections), predictions)


def test_the_objective_is_the_mean_of_both_directions():
    objective, model = method("simsiam"), network()
    seen = batch(objective)
    projections = objective.head(model.features(seen.views.flatten(0, 1)))
    predictions = objective.predictor(projections)
    (z_1, z_2), (p_1, p_2) = (
        rows.unflatten(0, (6, 2)).unbind(1) for rows in (projections, predictions)
    )
    wanted = (negative_cosine(p_1, z_2) + negative_cosine(p_2, z_1)) / 2
    terms = objective(model, seen, 0)
    assert terms["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    directions = torch.nn.functional.normalize(projections, dim=1)
    spread = directions.std(0, correction=0).mean()
    assert terms["projection_std"].item() == pytest.approx(spread.item(), rel=1e-5)


def test_the_predictor_is_a_bottleneck_of_a_quarter_unless_told():
    for options, between in (({}, 3), ({"predictor": None}, 2)):
        first = method("simsiam", **options).predictor[0]
        assert (first.in_features, first.out_features) == (8, between)
