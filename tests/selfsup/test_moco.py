import math

import pytest
import torch
from shared_views import batch, drawn, method, network
from torch.nn import functional as F

from raykb.selfsup.moco import queue_contrast


def naive(queries, keys, negatives, temperature):
    """Return the loss by the formula, query by query."""
    losses = []
    for query, key in zip(queries, keys, strict=True):
        query, key = query / query.norm(), key / key.norm()
        own = math.exp(query @ key / temperature)
        others = sum(math.exp(query @ row / temperature) for row in negatives)
        losses.append(-math.log(own / (own + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("count", "size", "temperature"), [(1, 1, 1.0), (3, 5, 0.2), (6, 2, 0.07)])
def test_it_is_the_formula_query_by_query(count, size, temperature):
    queries, keys = drawn(count, 4), drawn(count, 4, seed=1)
    negatives = F.normalize(drawn(size, 4, seed=2))
    wanted = naive(queries, keys, negatives, temperature)
    loss = queue_contrast(queries, keys, negatives, temperature)
    assert loss.item() == pytest.approx(wanted)


def test_perfect_queries_among_orthogonal_negatives():
    rows = torch.eye(5, dtype=torch.float64)
    loss = queue_contrast(rows[:2], rows[:2], rows[2:], 0.2)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-5)))
    same = torch.ones(4, 5, dtype=torch.float64) / 5**0.5
    assert queue_contrast(same, same, same, 0.2).item() == pytest.approx(math.log(5))


def test_queries_get_gradient_and_keys_none():
    queries, keys = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    negatives = F.normalize(drawn(5, 4, seed=2))
    queue_contrast(queries, keys, negatives, 0.2).backward()
    assert queries.grad.abs().sum() > 0
    assert keys.grad is None
    found = torch.autograd.gradcheck(
        lambda rows: queue_contrast(rows, keys, negatives, 0.2), queries
    )
    assert found


def expected(objective, model, views, negatives):
    """Return the loss of queries of the first of two views (N, C, H, W), and the keys."""
    queries = objective.head(model.features(views[0]))
    keys = objective.teacher_head(objective.teacher.features(views[1]))
    return queue_contrast(queries, keys, negatives, 0.3), F.normalize(keys, dim=1)


def test_the_keys_of_the_second_view_join_the_queue_after_the_loss():
    objective, model = method("moco"), network()
    seen, negatives = batch(objective), objective.queue.seen()
    wanted, keys = expected(objective, model, seen.views.unbind(1), negatives)
    assert objective(model, seen, 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(objective.queue.rows[:6], keys)
    assert torch.equal(objective.queue.rows[6:], negatives[6:])


def test_symmetric_is_the_mean_of_both_directions():
    objective, model = method("moco", symmetric=True), network()
    seen, negatives = batch(objective), objective.queue.seen()
    first, keys = expected(objective, model, seen.views.unbind(1), negatives)
    second, _ = expected(objective, model, seen.views.flip(1).unbind(1), negatives)
    loss = objective(model, seen, 0)["loss"].item()
    assert loss == pytest.approx((first + second).item() / 2, rel=1e-5)
    torch.testing.assert_close(objective.queue.rows[:6], keys)
    assert objective.queue.oldest == 12


def test_the_teacher_begins_as_its_student_and_follows_with_the_momentum():
    objective, model = method("moco"), network()
    before = objective.teacher[0].weight.clone()
    assert torch.equal(before, model[0].weight)
    with torch.no_grad():
        model[0].weight.add_(1.0)
        objective.head[0].weight.add_(1.0)
    head = objective.teacher_head[0].weight.clone()
    objective.after_step(model, 3)
    torch.testing.assert_close(objective.teacher[0].weight, before + 0.1)
    torch.testing.assert_close(objective.teacher_head[0].weight, head + 0.1)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"temperature: 0\.0, must be above 0"):
        method("moco", temperature=0.0)
    with pytest.raises(ValueError, match=r"momentum: 1\.5, must be in 0\.\.1"):
        method("moco", momentum=1.5)
