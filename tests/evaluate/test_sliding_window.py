"""Tiles cover a volume evenly, and what a network says of them comes together to the whole."""

import itertools
import pickle
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from raykb.evaluate.sliding_window import SlidingWindow

pytest.importorskip("monai", reason="in the extra 'medical'")

CPU = torch.device("cpu")
SMALL = SlidingWindow(tile=(4, 6, 8))


class Starts(nn.Module):
    """Keeps the first voxel of each tile of a volume whose values are its coordinates."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, tiles):
        self.seen += [int(tile.min()) for tile in tiles]
        return tiles


def starts(length, tile, **options):
    network = Starts()
    SlidingWindow(tile=(tile,), **options).logits(network, torch.arange(float(length))[None], CPU)
    return network.seen


@pytest.mark.parametrize("shape", [(4, 6, 8), (9, 6, 8), (5, 13, 17), (2, 7, 30), (1, 1, 1)])
@pytest.mark.parametrize("step", [0.5, 0.3, 1.0])
def test_the_identity_returns_the_volume_whatever_its_shape(shape, step):
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for batch_size in (1, 3):
        window = replace(SMALL, step=step, batch_size=batch_size)
        torch.testing.assert_close(
            window.logits(nn.Identity(), image, CPU), image, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("length", "tile", "nnunet"),
    [(110, 64, [0, 23, 46]), (100, 32, [0, 14, 27, 41, 54, 68]), (64, 64, [0]), (65, 64, [0, 1])],
)
def test_there_are_as_many_tiles_as_nnunets_within_two_voxels_of_them(length, tile, nnunet):
    found = starts(length, tile)
    assert len(found) == len(nnunet)
    assert (found[0], found[-1]) == (0, length - tile)
    assert max(abs(a - b) for a, b in zip(found, nnunet, strict=True)) <= 2


def test_tiles_of_the_sheet_are_its_own_where_they_can_be_even():
    assert starts(110, 64) == [0, 23, 46]
    assert starts(96, 32) == [0, 16, 32, 48, 64]
    assert starts(96, 32, step=1.0) == [0, 32, 64]
    assert starts(40, 32, step=0.25) == [0, 8]


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 8])
def test_no_step_is_longer_than_it_may_be_and_all_is_covered(tile):
    for length in range(tile, 60):
        found = starts(length, tile)
        steps = [b - a for a, b in itertools.pairwise(found)]
        assert max(steps, default=0) <= -(-tile // 2)
        assert (found[0], found[-1] + tile) == (0, length)


class Middle(nn.Module):
    """Says 1 of the first tile of a volume of coordinates, and 0 of the others."""

    def forward(self, tiles):
        first = tiles.flatten(1).amin(1)
        return (first == 0).reshape(-1, 1, 1) * torch.ones_like(tiles)


def test_tiles_are_weighted_by_a_gaussian_of_an_eighth():
    found = SlidingWindow(tile=(64,)).logits(Middle(), torch.arange(96.0)[None], CPU)[0]
    at = torch.arange(32, 64, dtype=torch.float64)
    first, second = (torch.exp(-((at - start - 31.5) ** 2) / (2 * 8.0**2)) for start in (0, 32))
    torch.testing.assert_close(found[32:64].double(), first / (first + second), rtol=0, atol=2e-3)
    assert found[:32].min() == 1
    assert found[64:].max() == 0


def test_the_number_of_voxels_decides_where_a_volume_comes_together():
    window, gpu = replace(SMALL, voxels_on_device=60), torch.device("cuda")
    assert window.place((3, 4, 5), gpu) == gpu
    assert window.place((3, 4, 6), gpu) == CPU
    assert SMALL.place((256, 512, 512), gpu) == gpu
    assert SMALL.place((257, 512, 512), gpu) == CPU


def test_a_volume_that_is_put_together_elsewhere_is_the_same():
    image = torch.randn(1, 5, 9, 11, generator=torch.Generator().manual_seed(0))
    network = nn.Conv3d(1, 3, 3, padding=1)
    here, there = (
        replace(SMALL, voxels_on_device=most).logits(network, image, CPU) for most in (10**6, 0)
    )
    assert here.shape == (3, 5, 9, 11)
    assert torch.equal(here, there)
    assert not here.requires_grad


def test_it_pickles():
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": (4, 0, 4)}, r"tile: \(4, 0, 4\), must be positive along each axis"),
        ({"tile": ()}, r"tile: \(\), must be positive"),
        ({"step": 0.0}, r"step: 0\.0, must be above 0 and at most 1"),
        ({"step": 1.5}, r"step: 1\.5, must be above 0 and at most 1"),
        ({"batch_size": 0}, "batch_size: 0, must be at least 1"),
        ({"voxels_on_device": -1}, "voxels_on_device: -1, must be at least 0"),
    ],
)
def test_windows_that_cannot_slide_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)


def test_an_image_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"image: \(1, 5, 5\), must have a channel and 3 more"):
        SMALL.logits(nn.Identity(), torch.zeros(1, 5, 5), CPU)


def test_without_monai_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.inferers.utils", None)
    with pytest.raises(ImportError, match=r"is not installed; run: pip install 'raykb\[medical\]'"):
        SMALL.logits(nn.Identity(), torch.zeros(1, 5, 5, 5), CPU)
