"""Cutout: the share that is covered, where, and that labels stay."""

import pytest
import torch

from raykb.engine.seeding import generator
from raykb.recognition.cutout import Cutout, cutout


def exact_share(size, side):
    """Return the mean share of an image that is covered, by its sum over all centres."""
    half = size // 2
    spans = [min(c + half, side) - max(c - half, 0) for c in range(side)]
    return (sum(spans) / side**2) ** 2


@pytest.mark.parametrize(
    ("size", "published", "most"), [(16, 0.1914, 0.25), (20, 0.2781, 0.390625)]
)
def test_the_covered_share_is_that_of_the_sum_over_all_centres(size, published, most):
    images = torch.zeros(1).expand(50_000, 1, 32, 32)
    holes = ~Cutout(size=size).draw(images, generator(3)).masks
    shares = holes.double().mean((1, 2, 3))
    wanted = exact_share(size, 32)
    assert wanted == pytest.approx(published, abs=1e-4)
    error = float(shares.std()) / len(shares) ** 0.5
    assert abs(float(shares.mean()) - wanted) < 4 * error
    assert float(shares.max()) == most


@pytest.mark.parametrize("per_sample", [False, True])
def test_holes_are_zero_all_else_and_the_labels_stay(per_sample):
    images, labels = 1.0 + torch.rand(6, 3, 24, 40), torch.arange(6)
    found = cutout(images, labels, generator(1), size=9, per_sample=per_sample)
    hole = found.images == 0
    assert torch.equal(found.images, images * ~hole)
    assert (hole == hole[:, :1]).all()
    assert (hole == hole[:1]).all() != per_sample
    assert hole[:, 0].sum((1, 2)).max() == 64  # 8 by 8 where the border cuts nothing off
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.others, labels)
    assert (found.kept == 1).all()


def test_so_many_images_have_a_hole():
    images = torch.zeros(1).expand(4000, 1, 8, 8)
    holes = ~Cutout(size=4, probability=0.3).draw(images, generator(0)).masks
    assert holes.flatten(1).any(1).float().mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"size": 0}, "size: 0, must be at least 1"), ({"probability": -0.1}, r"in 0..1")],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Cutout(**settings)
