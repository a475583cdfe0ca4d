import math

import pytest
import torch
from shared_views import batch, drawn, method, network
from torch.nn import functional as F

from raykb.selfsup.swav import sinkhorn, swapped_prediction


def naive_sinkhorn(similarity, smoothness, iterations):
    """Return the codes by the official code's steps, number by number."""
    codes = [[math.exp(s / smoothness) for s in row] for row in similarity.tolist()]
    rows, columns = range(len(codes)), range(len(codes[0]))
    total = sum(map(sum, codes))
    codes = [[value / total for value in row] for row in codes]
    for _ in range(iterations):
        for k in columns:
            mass = sum(codes[i][k] for i in rows) * len(columns)
            for i in rows:
                codes[i][k] /= mass
        for i in rows:
            mass = sum(codes[i]) * len(rows)
            codes[i] = [value / mass for value in codes[i]]
    return [[value * len(rows) for value in row] for row in codes]


@pytest.mark.parametrize(("count", "prototypes"), [(1, 3), (6, 4), (3, 7)])
@pytest.mark.parametrize(("smoothness", "iterations"), [(0.05, 3), (0.5, 1), (0.2, 10)])
def test_codes_are_those_of_the_official_steps(count, prototypes, smoothness, iterations):
    similarity = drawn(count, prototypes).tanh()
    codes = sinkhorn(similarity, smoothness, iterations)
    wanted = torch.tensor(naive_sinkhorn(similarity, smoothness, iterations), dtype=torch.float64)
    torch.testing.assert_close(codes, wanted)
    assert codes.sum(1).tolist() == pytest.approx([1.0] * count)


def test_after_many_steps_prototypes_share_the_rows_evenly_whatever_the_scale():
    similarity = drawn(6, 3).tanh()
    for smoothness in (0.3, 1.0):
        codes = sinkhorn(similarity, smoothness, 200)
        assert codes.sum(0).tolist() == pytest.approx([2.0] * 3, abs=1e-6)
    assert sinkhorn(drawn(6, 3).tanh().float(), 1e-3, 3).isfinite().all()
    assert not sinkhorn(similarity.requires_grad_(), 0.3, 3).requires_grad


def test_a_swapped_prediction_is_a_cross_entropy_row_by_row():
    similarity, codes = drawn(4, 3), drawn(4, 3, seed=1).softmax(1)
    losses = []
    for row, code in zip(similarity / 0.3, codes, strict=True):
        total = sum(math.exp(value) for value in row)
        losses.append(
            -sum(q * math.log(math.exp(s) / total) for q, s in zip(code, row, strict=True))
        )
    loss = swapped_prediction(similarity, codes, 0.3)
    assert loss.item() == pytest.approx(float(sum(losses)) / 4)
    similarity.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: swapped_prediction(s, codes, 0.3), similarity)


def z_of(objective, model, seen):
    """Return z (N, d) of each crop; they pass the head together."""
    features = [model.features(kind.flatten(0, 1)) for kind in (seen.views, seen.local)]
    rows = F.normalize(objective.head(torch.cat(features)), dim=1).split([12, 6])
    return [*rows[0].unflatten(0, (6, 2)).unbind(1), rows[1]]


def expected(similarity, codes, temperature=0.1):
    """Return the loss of one small and two large crops."""
    (code_1, code_2), (s_1, s_2, small) = codes, similarity
    pairs = (s_2, code_1), (small, code_1), (s_1, code_2), (small, code_2)
    return sum(swapped_prediction(*pair, temperature) for pair in pairs) / 4


def test_the_objective_swaps_codes_of_large_crops():
    options = {"temperature": 0.2, "smoothness": 0.3, "iterations": 2}
    objective, model = method("swav", **options), network()
    seen = batch(objective)
    similarity = [z @ objective.prototypes.T for z in z_of(objective, model, seen)]
    codes = [sinkhorn(s, 0.3, 2) for s in similarity[:2]]
    wanted = expected(similarity, codes, 0.2)
    assert objective(model, seen, 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_without_small_crops_each_large_one_tells_the_other():
    objective, model = method("swav", local_views=0), network()
    seen = batch(objective)
    rows = objective.head(model.features(seen.views.flatten(0, 1)))
    z_1, z_2 = F.normalize(rows, dim=1).unflatten(0, (6, 2)).unbind(1)
    s_1, s_2 = z_1 @ objective.prototypes.T, z_2 @ objective.prototypes.T
    pairs = (s_2, sinkhorn(s_1, 0.05, 3)), (s_1, sinkhorn(s_2, 0.05, 3))
    wanted = sum(swapped_prediction(*pair, 0.1) for pair in pairs) / 2
    assert objective(model, seen, 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_queue_takes_part_in_codes_once_it_is_full_and_its_time_has_come():
    objective, model = method("swav", queue=12, queue_start=3), network()
    seen = batch(objective)
    z = [rows.detach() for rows in z_of(objective, model, seen)]
    similarity = [rows @ objective.prototypes.T.detach() for rows in z]
    alone = expected(similarity, [sinkhorn(s, 0.05, 3) for s in similarity[:2]]).item()
    for step in (0, 2):
        assert objective(model, seen, step)["loss"].item() == pytest.approx(alone, rel=1e-5)
    for own, rows in zip(objective.queues, z[:2], strict=True):
        torch.testing.assert_close(own.rows, rows.repeat(2, 1))
    codes = [sinkhorn(s.repeat(3, 1), 0.05, 3)[:6] for s in similarity[:2]]
    with_queue = expected(similarity, codes).item()
    objective.queues[0].rows.copy_(torch.eye(4)[[0] * 12])
    first = torch.cat([similarity[0], objective.prototypes.detach()[:, 0].repeat(12, 1)])
    codes[0] = sinkhorn(first, 0.05, 3)[:6]
    wanted = expected(similarity, codes).item()
    assert wanted != pytest.approx(with_queue, rel=1e-4)
    assert objective(model, seen, 3)["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_prototypes_are_held_at_first_and_of_length_1_after_each_step():
    objective, model = method("swav", freeze_steps=2), network()
    for step, still in ((1, True), (2, False)):
        objective.zero_grad()
        objective(model, batch(objective), step)["loss"].backward()
        assert (objective.prototypes.grad.abs().sum() == 0) == still
    with torch.no_grad():
        objective.prototypes.mul_(3.0)
    objective.after_step(model, 2)
    torch.testing.assert_close(objective.prototypes.norm(dim=1), torch.ones(5))


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(ValueError, match=r"temperature: 0, must.*; smoothness: -1, must be above"):
        method("swav", temperature=0, smoothness=-1)
    with pytest.raises(ValueError, match=r"iterations: 0, must be at least 1; local_views: -1"):
        method("swav", iterations=0, local_views=-1)
