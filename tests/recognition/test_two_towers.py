import math

import pytest
import torch

from raykb.engine.objective import Task
from raykb.models.vilt import ViLT
from raykb.recognition.two_towers import TwoTowers, contrastive_loss


def test_texts_at_their_own_images_cost_little_and_at_others_much():
    rows, sharp = torch.eye(4), torch.tensor(math.log(50.0))
    assert contrastive_loss(rows, rows, sharp)[0].item() == pytest.approx(0, abs=1e-5)
    assert contrastive_loss(rows, rows.roll(1, 0), sharp)[0].item() == pytest.approx(50, rel=1e-3)


def test_both_ways_count_alike():
    texts, images = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    one, other = (
        contrastive_loss(*pair, torch.ones(())) for pair in ((texts, images), (images, texts))
    )
    assert one[0].item() == pytest.approx(other[0].item())


def test_the_scale_is_100_at_most():
    texts, images = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = [contrastive_loss(texts, images, torch.tensor(at))[1] for at in (math.log(100), 9.0)]
    assert torch.allclose(*found)


def test_what_it_does_not_train_is_kept_from_the_optimizer():
    network = ViLT(2, 1, vocabulary=9, image_size=8, patch=4, width=8, depth=1, heads=2)
    TwoTowers(Task(network, 1))
    assert not any(p.requires_grad for p in network.matching.parameters())
    assert all(p.requires_grad for p in network.textual.parameters())
