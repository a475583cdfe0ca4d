import itertools

import numpy as np
import pytest
import torch
from shared_views import batch, method, network

from raykb.selfsup.jigsaw import distant_permutations, tiles


@pytest.mark.parametrize(("places", "count"), [(4, 24), (4, 2), (9, 20)])
def test_permutations_differ_and_begin_with_that_which_moves_nothing(places, count):
    found = distant_permutations(places, count)
    assert found.shape == (count, places)
    assert found[0].tolist() == list(range(places))
    assert len({tuple(row) for row in found.tolist()}) == count
    assert all(sorted(row) == list(range(places)) for row in found.tolist())
    assert np.array_equal(found, distant_permutations(places, count))


def test_each_new_permutation_is_as_far_as_can_be_from_its_nearest():
    found = distant_permutations(4, 8).tolist()
    everyone = list(itertools.permutations(range(4)))

    def nearest(row, chosen):
        return min(sum(a != b for a, b in zip(row, own, strict=True)) for own in chosen)

    for number in range(1, 8):
        chosen = found[:number]
        most = max(nearest(row, chosen) for row in everyone)
        assert nearest(found[number], chosen) == most


def test_of_nine_places_they_differ_in_more_than_by_chance():
    def mean_distance(rows):
        return np.mean([(a != b).sum() for a, b in itertools.combinations(rows, 2)])

    assert distant_permutations(9, 2)[1].tolist() != list(range(9))
    chance = np.array([np.random.default_rng(seed).permutation(9) for seed in range(30)])
    assert mean_distance(distant_permutations(9, 30)) >= mean_distance(chance)
    pairs = itertools.combinations(distant_permutations(9, 30), 2)
    assert min((a != b).sum() for a, b in pairs) >= 7


@pytest.mark.parametrize(("places", "count"), [(4, 25), (4, 1), (9, 4097)])
def test_more_permutations_than_there_are_are_refused(places, count):
    with pytest.raises(ValueError, match=rf"permutations: {count} of {places} tiles, must be in 2"):
        distant_permutations(places, count)


@pytest.mark.parametrize(("height", "width", "grid"), [(4, 4, 2), (7, 11, 3), (3, 3, 3)])
def test_tiles_are_cut_row_by_row(height, width, grid):
    images = torch.arange(2.0 * 2 * height * width).reshape(2, 2, height, width)
    found, (h, w) = tiles(images, grid), (height // grid, width // grid)
    assert found.shape == (2, grid**2, 2, h, w)
    for row, column in itertools.product(range(grid), repeat=2):
        wanted = images[:, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
        assert torch.equal(found[:, row * grid + column], wanted)


def test_images_of_fewer_pixels_than_tiles_are_refused():
    with pytest.raises(ValueError, match=r"images: of 2 x 5 pixels, must have at least 3 x 3"):
        tiles(torch.zeros(1, 1, 2, 5), 3)


def test_the_network_sees_one_tile_at_a_time_and_the_head_all():
    objective, model = method("jigsaw"), network()
    seen = batch(objective)
    together = torch.cat([model.features(tile) for tile in tiles(seen.images, 2).unbind(1)], 1)
    logits = objective.head(together)
    assert logits.shape == (6, 6)
    wanted = torch.nn.functional.cross_entropy(logits, seen.labels)
    terms = objective(model, seen, 0)
    assert terms["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    hits = (logits.argmax(1) == seen.labels).float().mean()
    assert terms["pretext_top1"].item() == pytest.approx(hits.item())
    assert objective.orders.shape == (6, 4)
    assert objective.head[0].out_features == 5


def test_a_grid_of_one_tile_is_refused():
    with pytest.raises(ValueError, match="grid: 1, must be at least 2; hidden: 0, must be at lea"):
        method("jigsaw", grid=1, hidden=0)
