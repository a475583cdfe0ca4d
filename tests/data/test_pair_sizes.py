import pytest

from raykb.data.pair_sizes import scaled_size


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
    assert max(map(max, sizes)) == 608
