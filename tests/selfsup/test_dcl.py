import math

import pytest
import torch
from shared_views import batch, drawn, method, network

from raykb.selfsup.dcl import dcl_loss, dclw_loss, pair_weights


def circle():
    """Return the sheet's two views of four images."""
    angle = torch.tensor([0.0, 0.7, 1.9, 3.1], dtype=torch.float64)
    moved = angle + torch.tensor([0.2, -0.3, 0.1, 0.4])
    return [torch.stack([a.cos(), a.sin()], 1) for a in (angle, moved)]


def directions(rows):
    return [row / row.norm() for row in rows]


def anchor_losses(first, second, temperature, sigma=None):
    """Return L_i^k of each of the 2N anchors, by the formula, anchor by anchor."""
    found = []
    numbers = range(len(first))
    for own, other in ((first, second), (second, first)):
        own, other = directions(own), directions(other)
        pairs = [own[i] @ other[i] for i in numbers]
        weights = [1.0 for _ in numbers]
        if sigma is not None:
            mean = sum(math.exp(pair / sigma) for pair in pairs) / len(pairs)
            weights = [2 - math.exp(pair / sigma) / mean for pair in pairs]
        for i in numbers:
            others = [view[j] for j in numbers if j != i for view in (own, other)]
            total = sum(math.exp(own[i] @ row / temperature) for row in others)
            found.append(-weights[i] * pairs[i].item() / temperature + math.log(total))
    return found


def nt_xent(first, second, temperature):
    """Return the normalised temperature-scaled cross entropy, anchor by anchor."""
    both = directions(torch.cat([first, second]))
    count, losses = len(first), []
    for i, anchor in enumerate(both):
        others = [math.exp(anchor @ row / temperature) for j, row in enumerate(both) if j != i]
        pair = anchor @ both[(i + count) % (2 * count)] / temperature
        losses.append(math.log(sum(others)) - pair.item())
    return sum(losses) / len(losses)


def test_the_golden_values():
    first, second = circle()
    assert dcl_loss(first, second, 0.1).item() == pytest.approx(-2.907282, abs=1e-6)
    assert dclw_loss(first, second, 0.1, 0.5).item() == pytest.approx(-2.891804, abs=1e-6)
    weights = pair_weights((first * second).sum(1), 0.5)
    assert weights.tolist() == pytest.approx([0.9666, 1.0165, 0.9353, 1.0816], abs=5e-5)
    assert nt_xent(first, second, 0.1) == pytest.approx(0.370819, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(("temperature", "sigma"), [(0.1, 0.5), (0.5, 0.2), (1.0, 2.0)])
def test_they_are_the_formula_anchor_by_anchor(count, temperature, sigma):
    first, second = drawn(count, 5), drawn(count, 5, seed=1)
    plain = anchor_losses(first, second, temperature)
    assert dcl_loss(first, second, temperature).item() == pytest.approx(sum(plain) / len(plain))
    weighted = anchor_losses(first, second, temperature, sigma)
    loss = dclw_loss(first, second, temperature, sigma)
    assert loss.item() == pytest.approx(sum(weighted) / len(weighted))


def test_nt_xent_is_the_mean_softplus_of_its_anchors():
    first, second = drawn(5, 4), drawn(5, 4, seed=1)
    losses = torch.tensor(anchor_losses(first, second, 0.3))
    wanted = torch.nn.functional.softplus(losses).mean()
    assert nt_xent(first, second, 0.3) == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize(("count", "temperature"), [(4, 0.1), (3, 0.5)])
def test_orthonormal_pairs_and_collapsed_ones(count, temperature):
    rows = torch.eye(count, dtype=torch.float64)
    loss = dcl_loss(rows, rows, temperature).item()
    assert loss == pytest.approx(-1 / temperature + math.log(2 * count - 2))
    if count == 4:
        assert loss == pytest.approx(-8.208241, abs=1e-6)
    same = torch.ones_like(rows)
    assert dcl_loss(same, same, temperature).item() == pytest.approx(math.log(2 * count - 2))


def test_one_image_has_no_negatives_and_is_refused():
    for first, second in ((drawn(1, 3), drawn(1, 3)), (drawn(3, 3), drawn(2, 3))):
        with pytest.raises(ValueError, match=r"first, second: .*, must both be \(N, d\) of at lea"):
            dcl_loss(first, second, 0.1)


def test_weights_have_the_mean_1_are_at_most_2_and_may_be_negative():
    pairs = torch.cat([torch.ones(1), -torch.ones(7)])
    weights = pair_weights(pairs, 0.5)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert weights.max() <= 2
    assert weights[0].item() == pytest.approx(-5.09, abs=0.01)


def test_a_wide_sigma_is_dcl_and_lengths_and_order_do_not_matter():
    first, second = drawn(6, 4), drawn(6, 4, seed=1)
    loss = dcl_loss(first, second, 0.2).item()
    assert dclw_loss(first, second, 0.2, 1e9).item() == pytest.approx(loss)
    order = torch.randperm(6, generator=torch.manual_seed(0))
    assert dcl_loss(7.0 * first[order], second[order], 0.2).item() == pytest.approx(loss)
    assert dcl_loss(second, first, 0.2).item() == pytest.approx(loss)


def test_the_gradient_is_that_of_the_values_and_weights_have_none():
    first, second = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: dcl_loss(a, b, 0.5), (first, second))
    cosines = torch.nn.functional.cosine_similarity(first, second)
    weights = pair_weights(cosines, 0.3)
    assert not weights.requires_grad
    wanted = dcl_loss(first, second, 0.5) + ((1 - weights) * cosines).mean() / 0.5
    gradients = torch.autograd.grad(dclw_loss(first, second, 0.5, 0.3), (first, second))
    for own, other in zip(gradients, torch.autograd.grad(wanted, (first, second)), strict=True):
        torch.testing.assert_close(own, other)


def test_pairs_that_are_easy_still_attract():
    rows = torch.eye(4, dtype=torch.float64)
    near = (rows + 0.1 * drawn(4, 4)).requires_grad_()

    def pull(loss):
        return torch.autograd.grad(loss, near)[0].norm().item()

    both = torch.nn.functional.normalize(torch.cat([near, rows]))
    similarity = (both @ both.T / 0.1).fill_diagonal_(-torch.inf)
    infonce = -similarity.log_softmax(1)[torch.arange(8), torch.arange(8).roll(4)].mean()
    assert pull(dcl_loss(near, rows, 0.1)) > 10 * pull(infonce)


def test_half_precision_under_autocast_is_computed_in_float32():
    first, second = drawn(8, 16).bfloat16(), drawn(8, 16, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dclw_loss(first, second, 0.05, 0.5)
    assert loss.dtype == torch.float32
    exact = dclw_loss(first.double(), second.double(), 0.05, 0.5)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_the_objective_is_the_loss_of_its_projections(sigma):
    objective, model = method("dcl", sigma=sigma), network()
    seen = batch(objective)
    rows = [objective.head(model.features(view)) for view in seen.views.unbind(1)]
    wanted = dcl_loss(*rows, 0.2) if sigma is None else dclw_loss(*rows, 0.2, sigma)
    assert objective(model, seen, 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_temperature_and_sigma_must_be_above_0():
    with pytest.raises(ValueError, match=r"temperature: 0\.0, must be above 0; sigma: 0, must be"):
        method("dcl", temperature=0.0, sigma=0)
