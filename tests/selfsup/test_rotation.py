import math

import pytest
import torch
from shared_views import WIDTH, batch, method, network


def test_the_objective_is_the_cross_entropy_of_the_turns_image_by_image():
    objective, model = method("rotation"), network()
    seen = batch(objective)
    losses, hits = [], []
    for image, label in zip(seen.images, seen.labels, strict=True):
        logits = objective.head(model.features(image[None]))[0].detach()
        total = sum(math.exp(value) for value in logits)
        losses.append(-math.log(math.exp(logits[label]) / total))
        hits.append(logits.argmax().item() == label)
    terms = objective(model, seen, 0)
    assert terms["loss"].item() == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert terms["pretext_top1"].item() == pytest.approx(sum(hits) / 6)


def test_there_are_four_turns():
    assert method("rotation").head.weight.shape == (4, WIDTH)


def test_a_head_that_knows_the_turn_has_all_hits():
    objective, model = method("rotation"), network()
    seen = batch(objective)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    terms = objective(model, seen._replace(labels=torch.ones(6, dtype=torch.int64)), 0)
    assert terms["pretext_top1"] == 1.0
    assert terms["loss"].item() == pytest.approx(math.log(1 + 3 * math.exp(-9)), abs=1e-6)
