import numpy as np
import pytest
import torch
from mapped import CPU, Maps, coloured
from torch.nn import functional as F

from raykb.data.scenes import Scenes
from raykb.evaluate.backbone import Judged
from raykb.evaluate.regions import Regions, agreement

SMALL = {"scenes": 40, "count": 5, "background": "constant"}


def judged(make, **images):
    return Judged(Maps(make), CPU, coloured(60, **images))


def cells(images):
    """Maps of the mean colour in cells of 3 pixels."""
    return F.avg_pool2d(images, 3)


def overlap(first, second):
    wide, tall = (
        max(0.0, min(first[k + 2], second[k + 2]) - max(first[k], second[k])) for k in (0, 1)
    )
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return wide * tall / (sum(areas) - wide * tall)


def naive(pooled, boxes, apart):
    """The formula, a pair at a time."""
    same, different = [], []
    for (first, second), places in zip(pooled, boxes.tolist(), strict=True):
        for i, one in enumerate(first):
            same.append(torch.cosine_similarity(one, second[i], dim=0).item())
            for j, other in enumerate(second):
                if i != j and overlap(places[i], places[j]) <= apart:
                    different.append(torch.cosine_similarity(one, other, dim=0).item())
    return float(np.mean(same)), float(np.mean(different))


def test_golden_numbers():
    pooled = torch.tensor([[[[1.0, 0], [0, 1]], [[0.6, 0.8], [0, 1]]]])
    apart = torch.tensor([[[0.0, 0, 2, 2], [3, 3, 5, 5]]])
    wanted = {"same": 0.8, "different": 0.4, "agreement": 0.4}
    assert agreement(pooled, apart, 0.0) == pytest.approx(wanted)
    near = torch.tensor([[[0.0, 0, 2, 2], [1, 0, 3, 2]]])  # IoU 1/3
    assert agreement(pooled, near, 0.34) == pytest.approx(wanted)
    with pytest.raises(
        ValueError, match=r"of 1 scenes none has two boxes with an IoU of at most 0"
    ):
        agreement(pooled, near, 0.3)


@pytest.mark.parametrize("apart", [0.0, 0.2, 0.6])
def test_it_is_the_mean_over_pairs_a_pair_at_a_time(apart):
    numbers = torch.Generator().manual_seed(0)
    pooled = torch.randn(6, 2, 4, 3, generator=numbers)
    start, sides = torch.rand(2, 6, 4, 2, generator=numbers)
    found = agreement(pooled, torch.cat([start, start + 0.2 + sides], 2), apart)
    same, different = naive(pooled, torch.cat([start, start + 0.2 + sides], 2), apart)
    assert found["same"] == pytest.approx(same, abs=1e-6)
    assert found["different"] == pytest.approx(different, abs=1e-6)
    assert found["agreement"] == pytest.approx(same - different, abs=1e-6)


def test_maps_of_the_colours_at_a_place_know_regions_again_and_coarser_ones_less_well():
    fine = Regions(**SMALL, least=3)(judged(lambda images: images + 0.01)).figures
    assert fine["same"] > 0.98
    assert fine["agreement"] > 0.15
    coarse = Regions(**SMALL, least=3)(judged(lambda images: cells(images + 0.01))).figures
    assert 0 < coarse["agreement"] < fine["agreement"]


def test_maps_that_know_the_image_alone_or_nothing_agree_no_more_than_chance():
    still = Regions(**SMALL)(judged(lambda images: torch.ones_like(images))).figures
    assert still == pytest.approx({"same": 1, "different": 1, "agreement": 0}, abs=1e-6)
    whole = Regions(**SMALL)(judged(lambda images: cells(images).mean((2, 3), True) + 0 * images))
    assert whole.figures["same"] < 0.99
    assert whole.figures["agreement"] == pytest.approx(0, abs=0.02)


def test_what_is_seen_belongs_to_the_seed():
    again = [Regions(**SMALL)(judged(cells, seed=seed)).figures for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(("least", "wanted"), [(None, 3), (5, 5)])
def test_boxes_are_no_smaller_than_a_cell_of_the_maps_or_what_is_given(least, wanted):
    protocol, by = Regions(least=least), judged(cells)
    scenes = Scenes(by.by.test, protocol.composition())
    assert protocol.view(by, scenes).least == wanted


def test_all_settings_matter():
    others = [
        {"scenes": 20},
        {"count": 3},
        {"least": 6},
        {"apart": 0.3},
        {"crop": (0.5, 0.6)},
        {"canvas": 3.0},
        {"objects": (1, 1)},
        {"scale": (0.9, 1.0)},
        {"background": "texture"},
    ]
    found = [Regions(**SMALL | other)(judged(cells)).figures for other in [{}, *others]]
    assert len({figures["agreement"] for figures in found}) == len(found)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(
        ValueError, match=r"scenes: 0, must .*; count: 1, .*; least: 0, .*; apart: 1,"
    ):
        Regions(scenes=0, count=1, least=0, apart=1)
    with pytest.raises(
        ValueError, match=r"crop: \(0, 1\), must be \(least, greatest\) in \(0, 1\]"
    ):
        Regions(crop=(0, 1))
    with pytest.raises(ValueError, match="background: 'sky', must be"):
        Regions(background="sky")
