"""Operations on patches: what they do to known ones, and that each row is on its own."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from raykb.data.volume_operations import (
    blurred,
    brightened,
    coarsened,
    contrasted,
    gamma_corrected,
    mirrored,
    moved,
    noisy,
    rotations,
)

KEYS = torch.tensor([0.1, 0.6], dtype=torch.float64)


def patches(shape=(7, 8, 9), channels=2):
    """Two smooth patches and labels in them."""
    draw = np.random.default_rng(0)
    images = ndimage.gaussian_filter(draw.normal(size=(2, channels, *shape)), (0, 0, 1, 1, 1))
    labels = (images[:, 0] > 0) + 2 * (images[:, -1] > 0.1)
    return torch.from_numpy(images).float(), torch.from_numpy(labels.astype(np.int64))


def factors(*rows):
    return torch.tensor(rows)


# ---------------------------------------------------------------------- geometry


def test_rotations_turn_each_pair_of_axes_and_keep_lengths():
    about_z, about_y, about_x = rotations(90 * torch.eye(3))
    z, y, x = torch.eye(3)
    assert torch.allclose(about_z @ y, x, atol=1e-6)
    assert torch.allclose(about_y @ z, x, atol=1e-6)
    assert torch.allclose(about_x @ z, y, atol=1e-6)
    turned = rotations(torch.tensor([[10.0, -20, 30], [170, 80, -45]]))
    assert torch.allclose(turned @ turned.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
def test_what_is_not_moved_is_the_middle_of_what_was_given(axes):
    images, labels = patches((7, 9, 9))
    size = (7 if axes == 2 else 5, 5, 7)
    still = torch.eye(axes).expand(2, axes, axes)
    seen, near = moved(images, labels, still, (3.0, 1.0, 0.5), size)
    z = slice(None) if axes == 2 else slice(1, 6)
    assert torch.allclose(seen, images[:, :, z, 2:7, 1:8], atol=1e-5)
    assert torch.equal(near, labels[:, z, 2:7, 1:8])


def test_a_quarter_turn_is_that_of_the_array_for_images_and_labels():
    images, labels = patches((7, 8, 8))
    turn = rotations(torch.tensor([[90.0, 0, 0]] * 2))
    for matrices in (turn, turn[:, 1:, 1:]):
        seen, near = moved(images, labels, matrices, (4.0, 1.0, 1.0), (7, 8, 8))
        assert torch.allclose(seen, images.rot90(-1, (3, 4)), atol=1e-4)
        assert torch.equal(near, labels.rot90(-1, (2, 3)))


def test_turns_are_of_space_and_not_of_voxels():
    z, y, x = (torch.arange(n) - (n - 1) / 2 for n in (9, 31, 31))
    away = (4 * z[:, None, None]) ** 2 + y[:, None] ** 2 + x**2  # of a cloud in slices of 4 mm
    cloud, labels = (-away / (2 * 6**2)).exp()[None, None], (away < 10**2).long()[None]
    turn = rotations(torch.tensor([[20.0, 30, -25]]))
    for thickness, low, high in ((4.0, 0.0, 0.06), (1.0, 0.3, 1.0)):  # mm
        seen, _ = moved(cloud, labels, turn, (thickness, 1.0, 1.0), (9, 31, 31))
        assert low <= (seen - cloud).abs().max() <= high


def test_above_a_scale_of_one_more_is_seen_and_zeros_lie_outside():
    ones = torch.ones(2, 1, 8, 8, 8), torch.ones(2, 8, 8, 8, dtype=torch.int64)
    scales = torch.tensor([0.5, 2.0])[:, None, None] * torch.eye(3)
    seen, near = moved(*ones, scales, (1.0, 1.0, 1.0), (8, 8, 8))
    assert near.sum((1, 2, 3)).tolist() == [512, 64]
    assert (seen[:, 0, 4, 4, 4] == 1).all()
    assert seen[1, 0, 0].abs().max() == 0


def test_patches_are_mirrored_along_the_axes_that_are_told_and_their_labels_with_them():
    images, labels = patches()
    turned = torch.tensor([[True, False, True], [False, False, False]])
    seen, near = mirrored(images, labels, turned)
    assert torch.equal(seen[0], images[0].flip(1, 3))
    assert torch.equal(near[0], labels[0].flip(0, 2))
    assert torch.equal(seen[1], images[1])
    assert torch.equal(near[1], labels[1])
    seen, near = mirrored(images, labels, turned, axes=(1, 2))
    assert torch.equal(seen[0], images[0].flip(3))
    assert torch.equal(near[0], labels[0].flip(2))


# ---------------------------------------------------------------------- intensities


def test_noise_has_its_variance_in_each_patch():
    images = torch.zeros(2, 2, 20, 20, 20)
    made = noisy(images, torch.tensor([0.04, 0.0]), KEYS)
    assert made[0].var().item() == pytest.approx(0.04, rel=0.05)
    assert made[1].abs().max() == 0
    assert not torch.equal(made[0, 0], made[0, 1])


def test_a_blur_is_that_of_scipy_in_each_channel():
    images, _ = patches((9, 10, 11))
    sigma = factors([0.5, 1.0], [0.7, 0.6])
    made = blurred(images, sigma, widest=1.0)
    for row in range(2):
        for channel in range(2):
            own = sigma[row, channel].item()
            expected = ndimage.gaussian_filter(
                images[row, channel].numpy(), own, mode="nearest", radius=4
            )
            assert np.allclose(made[row, channel], expected, atol=1e-5)


def test_brightness_and_contrast_are_factors_of_channels():
    images, _ = patches()
    factor = factors([0.75, 1.25], [1.0, 0.9])
    assert torch.equal(brightened(images, factor)[0, 1], images[0, 1] * 1.25)
    made = contrasted(images, factor)
    assert torch.allclose(made.mean((2, 3, 4)), images.mean((2, 3, 4)), atol=0.01)
    assert made[0, 0].std().item() == pytest.approx(0.75 * images[0, 0].std().item(), rel=1e-4)
    assert torch.allclose(made[1, 0], images[1, 0], atol=1e-6)
    assert (made.amax((2, 3, 4)) <= images.amax((2, 3, 4))).all()
    assert (made.amin((2, 3, 4)) >= images.amin((2, 3, 4))).all()


def test_a_coarse_scan_has_the_nearest_voxels_and_lines_between_them():
    images = torch.arange(8.0)[None, None, None, None].expand(1, 2, 4, 4, 8)
    made = coarsened(images, factors([0.5, 1.0]))
    # of 8 voxels 1, 3, 5 and 7 are kept, in the middle between which the new ones lie
    assert torch.allclose(made[0, 0, 0, 0], torch.tensor([1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]))
    assert torch.equal(made[0, 1], images[0, 1])


def test_axes_of_slices_are_not_coarsened():
    images, _ = patches()
    made = coarsened(images, factors([0.5, 0.5], [0.5, 0.5]), axes=(1, 2))
    for z in range(7):
        alone = coarsened(images[:, :, z : z + 1], factors([0.5, 0.5], [0.5, 0.5]), axes=(1, 2))
        assert torch.equal(made[:, :, z : z + 1], alone)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_order_mean_and_deviation(inverted):
    images, _ = patches()
    made = gamma_corrected(images, factors([0.7, 1.5], [1.0, 1.2]), inverted=inverted)
    for of in (torch.mean, torch.std):
        assert torch.allclose(of(made, (2, 3, 4)), of(images, (2, 3, 4)), atol=1e-4)
    order = images.flatten(2).argsort(2)
    assert (made.flatten(2).gather(2, order).diff(dim=2) > -1e-4).all()
    assert torch.allclose(made[1, 0], images[1, 0], atol=1e-4)  # a gamma of 1
    assert (made[0, 0] - images[0, 0]).abs().max() > 0.01


def test_gamma_of_what_is_all_alike_is_that():
    flat = torch.full((1, 1, 3, 3, 3), 2.5)
    assert torch.equal(gamma_corrected(flat, factors([0.7]), inverted=False), flat)
