import pytest
import torch
from shared_views import network

from raykb.selfsup.encoding import by_view, encoded, held, scores


def crops(large=2, small=3):
    numbers = torch.Generator().manual_seed(0)
    return (
        torch.randn(4, large, 1, 4, 4, generator=numbers),
        torch.randn(4, small, 1, 3, 3, generator=numbers),
    )


@pytest.mark.parametrize("small", [0, 1, 3])
def test_rows_come_back_to_their_views(small):
    model, views = network(), crops(small=small)
    found = by_view(encoded(model, *views), *views)
    wanted = [model.features(view) for kind in views for view in kind.unbind(1)]
    assert len(found) == 2 + small
    for own, rows in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, rows)


def test_views_of_one_kind_pass_the_network_together():
    model, sizes = network(), []
    model[0].register_forward_hook(lambda layer, given, out: sizes.append(tuple(given[0].shape)))
    encoded(model, *crops())
    assert sizes == [(8, 1, 4, 4), (12, 1, 3, 3)]


def test_half_precision_rows_are_raised():
    views = crops()
    rows = by_view(encoded(network(), *views).bfloat16(), *views)
    assert {own.dtype for own in rows} == {torch.float32}


@pytest.mark.parametrize(("hold", "gradient"), [(True, 0.0), (False, 3.0)])
def test_a_weight_that_is_held_has_its_value_and_a_gradient_of_0(hold, gradient):
    weight = torch.tensor([1.7, -0.3], requires_grad=True)
    kept = held(weight, hold=hold)
    assert torch.equal(kept, weight)
    (3.0 * kept).sum().backward()
    assert weight.grad.tolist() == [gradient] * 2


def test_scores_keep_their_precision_under_autocast():
    rows, directions = torch.randn(3, 8), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(rows, directions)
    assert torch.equal(found, rows @ directions.T)
