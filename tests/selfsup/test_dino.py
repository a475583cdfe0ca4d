import math

import pytest
import torch
from shared_views import batch, drawn, method, network
from torch.nn import functional as F

from raykb.parts.teacher import cosine_momentum
from raykb.selfsup.dino import centred_shares, dino_loss


def shares_of(row, temperature):
    values = [math.exp(value / temperature) for value in row.tolist()]
    return [value / sum(values) for value in values]


def naive(student, teacher, center, temperature, teacher_temperature):
    """Return the loss by the formula, row by row."""
    losses = []
    for t, targets in enumerate(teacher):
        for v, logits in enumerate(student):
            if v == t:
                continue
            for target, row in zip(targets - center, logits, strict=True):
                wanted, found = shares_of(target, teacher_temperature), shares_of(row, temperature)
                losses.append(-sum(a * math.log(b) for a, b in zip(wanted, found, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(0.5, 0.3), (1.0, 0.2)])
def test_it_is_the_formula_row_by_row(views, temperature, teacher_temperature):
    student = [drawn(3, 4, seed=seed) for seed in range(views)]
    teacher, center = [drawn(3, 4, seed=10), drawn(3, 4, seed=11)], drawn(4, seed=12)
    shares = [centred_shares(own, center, teacher_temperature) for own in teacher]
    wanted = naive(student, teacher, center, temperature, teacher_temperature)
    assert dino_loss(student, shares, temperature).item() == pytest.approx(wanted)


def test_a_student_that_says_the_same_is_left_with_the_entropy():
    logits = drawn(3, 4)
    shares = centred_shares(logits, torch.zeros(4), 0.5)
    entropy = -(shares * shares.log()).sum(1).mean()
    assert dino_loss([logits] * 2, [shares] * 2, 0.5).item() == pytest.approx(entropy.item())


def test_students_get_gradient_and_the_teacher_none():
    student, teacher = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    shares = centred_shares(teacher, torch.zeros(4), 0.5)
    assert not shares.requires_grad
    assert torch.autograd.gradcheck(lambda s: dino_loss([s, s], [shares], 0.5), student)


def test_the_head_gives_cosines_with_directions():
    objective = method("dino")
    rows = objective.head.layers(torch.randn(3, 6))
    assert rows.shape == (3, 4)
    features = torch.randn(3, 6)
    rows, directions = objective.head.layers(features), objective.head.directions
    wanted = [[F.cosine_similarity(r, d, dim=0).item() for d in directions] for r in rows]
    torch.testing.assert_close(objective.head(features), torch.tensor(wanted))


def test_the_objective_is_the_loss_of_its_heads_and_its_centre_follows():
    options = {"temperature": 0.2, "center_momentum": 0.7, "teacher_temperature": 0.1}
    objective, model = method("dino", **options, first_teacher_temperature=0.3), network()
    seen = batch(objective)
    objective.center.copy_(torch.linspace(-0.1, 0.1, 7))
    center = objective.center.clone()
    crops = [*seen.views.unbind(1), *seen.local.unbind(1)]
    student = [objective.head(model.features(view)) for view in crops]
    teacher = [objective.teacher_head(objective.teacher.features(view)) for view in crops[:2]]
    shares = [centred_shares(own, center, 0.2) for own in teacher]  # half of six steps' climb
    wanted = dino_loss(student, shares, 0.2).item()
    assert objective(model, seen, 3)["loss"].item() == pytest.approx(wanted, rel=1e-5)
    moved = 0.7 * center + 0.3 * torch.cat(teacher).mean(0)
    torch.testing.assert_close(objective.center, moved)


def test_the_teachers_temperature_climbs_evenly_and_stays():
    objective = method("dino", teacher_temperature=0.07, ramp_up=0.5)  # of 20 steps
    found = [objective.temperature_at(step) for step in (0, 5, 10, 19)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert method("dino", teacher_temperature=0.07, ramp_up=0.0).temperature_at(0) == 0.07


def test_the_teacher_follows_with_a_momentum_that_climbs():
    objective, model = method("dino"), network()
    before, head = objective.teacher[0].weight.clone(), objective.teacher_head.directions.clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        objective.head.directions.add_(1.0)
    objective.after_step(model, 10)
    moved = 1.0 - cosine_momentum(0.9, 10, 20)
    torch.testing.assert_close(objective.teacher[0].weight, before + moved)
    torch.testing.assert_close(objective.teacher_head.directions, head + moved)


def test_directions_are_held_at_first():
    objective, model = method("dino", freeze_steps=2), network()
    for step, still in ((1, True), (2, False)):
        objective.zero_grad()
        objective(model, batch(objective), step)["loss"].backward()
        assert (objective.head.directions.grad.abs().sum() == 0) == still


def test_settings_out_of_range_are_refused_together():
    with pytest.raises(ValueError, match=r"temperature: 0, must.*; first_teacher_temperature: 0"):
        method("dino", temperature=0, first_teacher_temperature=0)
    with pytest.raises(ValueError, match=r"ramp_up: 2, must be in 0\.\.1; center_momentum: -1"):
        method("dino", ramp_up=2, center_momentum=-1)
