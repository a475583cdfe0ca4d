import numpy as np
import pytest

from raykb.data.pair_sizes import largest_side, padded, scaled, scaled_size


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ((480, 640), (384, 512)),
        ((640, 480), (512, 384)),
        ((640, 384), (608, 352)),
        ((384, 384), (384, 384)),
        ((100, 3000), (32, 608)),
    ],
)
def test_sizes_are_those_of_the_papers_code(given, becomes):
    assert scaled_size(*given) == becomes


def test_no_image_has_more_than_228_patches_or_a_side_above_608():
    sizes = [scaled_size(h, w) for h in range(200, 801, 8) for w in range(200, 801, 8)]
    assert max(h // 32 * (w // 32) for h, w in sizes) == 228
    assert max(map(max, sizes)) == largest_side(384, 32) == 608


def test_an_image_keeps_its_shape_and_what_it_shows():
    image = np.zeros((3, 20, 40), np.uint8)
    image[0, :, 20:] = 200
    found = scaled(image, shorter=16, patch=8)
    assert found.shape == (3, 8, 24)  # the longer side is limited, and both are rounded down
    assert found[0, 4, 2] == 0
    assert found[0, 4, -3] == 200
    assert not found[1:].any()


def test_images_stand_at_the_top_left_of_the_largest_and_grey_is_repeated_among_colour():
    images = [np.full((3, 2, 4), 7, np.uint8), np.full((1, 3, 1), 9, np.uint8)]
    found, sizes = padded(images)
    assert found.shape == (2, 3, 3, 4)
    assert sizes.tolist() == [[2, 4], [3, 1]]
    assert (found[0, :, :2] == 7).all()
    assert (found[1, :, :, 0] == 9).all()
    assert found.sum() == 3 * (8 * 7 + 3 * 9)
