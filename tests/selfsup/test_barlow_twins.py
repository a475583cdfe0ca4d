import pytest
import torch
from shared_views import batch, drawn, method, network

from raykb.selfsup.barlow_twins import barlow_twins_loss, cross_correlation


def naive(first, second, weight):
    """Return the loss by the formula, entry by entry; variances are far above 1e-5."""
    first, second = (
        (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (first, second)
    )
    loss = 0.0
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            c = sum(a[i] * b[j] for a, b in zip(first, second, strict=True)) / len(first)
            loss += (1 - c) ** 2 if i == j else weight * c**2
    return loss.item()


@pytest.mark.parametrize(("count", "width", "weight"), [(2, 1, 0.005), (5, 3, 0.005), (9, 4, 1.0)])
def test_it_is_the_formula_entry_by_entry(count, width, weight):
    first, second = drawn(count, width), drawn(count, width, seed=1)
    loss = barlow_twins_loss(first, second, weight)
    assert loss.item() == pytest.approx(naive(first, second, weight))


def test_whitened_views_that_agree_have_no_loss():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert barlow_twins_loss(rows, rows, 0.1).item() == pytest.approx(0.0, abs=1e-9)
    # turned by a quarter circle, each dimension is the other: C is [[0, -1], [1, 0]]
    turned = torch.stack([rows[:, 1], -rows[:, 0]], 1)
    assert barlow_twins_loss(rows, turned, 0.1).item() == pytest.approx(2.2, abs=1e-4)


def test_scale_and_shift_of_a_dimension_do_not_matter():
    first, second = drawn(8, 3), drawn(8, 3, seed=1)
    moved = first * torch.tensor([2.0, 5.0, 9.0]) + torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(
        cross_correlation(moved, second), cross_correlation(first, second), rtol=0, atol=1e-4
    )
    assert cross_correlation(first, first).diagonal().tolist() == pytest.approx([1.0] * 3, abs=1e-4)


def test_its_gradient_is_that_of_its_values():
    rows = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, 0.3), rows)


def test_the_objective_is_the_loss_of_its_projections():
    objective, model = method("barlow_twins"), network()
    seen = batch(objective)
    rows = objective.head(model.features(seen.views.flatten(0, 1))).unflatten(0, (6, 2))
    wanted = barlow_twins_loss(*rows.unbind(1), 0.1)
    assert objective(model, seen, 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_hidden_layers_are_as_wide_as_what_comes_out_unless_told():
    for options, hidden in (({}, 5), ({"hidden": None}, 4)):
        head = method("barlow_twins", **options).head
        widths = [m.weight.shape for m in head if isinstance(m, torch.nn.Linear)]
        assert widths == [(hidden, 6), (hidden, hidden), (4, hidden)]
    with pytest.raises(ValueError, match=r"redundancy_weight: -0\.1, must be in 0\.\.inf"):
        method("barlow_twins", redundancy_weight=-0.1)
