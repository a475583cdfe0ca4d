import pytest
import torch

from raykb.parts.patches import enlarged, grid, hidden_count, patched, pictured


def test_patches_are_those_that_a_loop_cuts_out_and_make_the_image_again():
    images = torch.rand(2, 3, 4, 6)
    patches = patched(images, 2)
    assert patches.shape == (2, 6, 12)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                cut = images[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert torch.equal(patches[image, 3 * row + column], cut.flatten())
    assert torch.equal(pictured(patches, 2, 2), images)


def test_images_that_squares_do_not_fill_are_refused():
    assert grid(torch.empty(1, 3, 4, 6), 2) == (2, 3)
    with pytest.raises(ValueError, match=r"^images: 4 x 6 pixels; squares of 4 must fill them"):
        patched(torch.empty(1, 3, 4, 6), 4)


@pytest.mark.parametrize(
    ("patches", "ratio", "count"),
    [(196, 0.75, 147), (36, 0.6, 22), (100, 0.55, 55), (4, 0.0, 1), (4, 0.99, 3), (5, 0.6, 3)],
)
def test_a_share_is_rounded_up_and_is_never_nothing_nor_all(patches, ratio, count):
    assert hidden_count(patches, ratio) == count


def test_one_patch_is_not_enough():
    with pytest.raises(ValueError, match=r"^patches: 1 of an image"):
        hidden_count(1, 0.5)


def test_cells_are_enlarged_to_what_they_are_made_of():
    mask = torch.tensor([[[True, False], [False, True]]])
    wanted = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert enlarged(mask, 2).int().tolist() == [wanted]
