"""Augmentations of patches: what holds for each setting, whoever is beside a patch."""

import numpy as np
import pytest
import torch

from raykb.data.volume_augmentations import PATCH_AUGMENTATIONS, NNUNetAugmentation

CUBES = {"size": (10, 10, 10), "spacing_mm": (1.0, 1.0, 1.0)}
SLICES = {"size": (4, 16, 16), "spacing_mm": (5.0, 1.0, 1.0)}
EACH = (
    *("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution"),
    *("inverted_gamma", "gamma", "mirroring"),
)
NEVER = dict.fromkeys(EACH, 0.0)
ALWAYS = dict.fromkeys(EACH, 1.0)


def patches(of, count=6, channels=2):
    """Patches as large as an augmentation wants them, and draws."""
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.normal(size=(count, channels, *of.reach))).float()
    labels = torch.from_numpy(draw.integers(0, 4, (count, *of.reach)))
    return images, labels, torch.from_numpy(draw.uniform(size=(count, of.draws)))


def middle(of, array):
    borders = [(far - near) // 2 for far, near in zip(of.reach, of.size, strict=True)]
    box = (slice(b, b + n) for b, n in zip(borders, of.size, strict=True))
    return array[(..., *box)]


@pytest.mark.parametrize("kind", [CUBES, SLICES])
def test_what_has_no_probability_leaves_the_middle_as_it_was(kind):
    of = NNUNetAugmentation(**kind, **NEVER)
    assert of.reach == of.size
    rare = NNUNetAugmentation(**kind, **NEVER | {"rotation": 1e-12})
    for each in (of, rare):
        images, labels, uniforms = patches(each)
        seen, near = each(images, labels, uniforms)
        assert torch.equal(seen, middle(each, images))
        assert torch.equal(near, middle(each, labels))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("kind", [CUBES, SLICES], ids=["cubes", "slices"])
def test_each_changes_images_keeps_the_set_of_labels_and_moves_none_but_if_it_moves(kind, name):
    of = NNUNetAugmentation(**kind, **NEVER | {name: 1.0})
    images, labels, uniforms = patches(of)
    seen, near = of(images, labels, uniforms)
    assert seen.shape == (6, 2, *of.size)
    assert near.shape == (6, *of.size)
    assert (seen.dtype, near.dtype) == (torch.float32, torch.int64)
    assert seen.isfinite().all()
    assert set(near.unique().tolist()) == {0, 1, 2, 3}
    assert not torch.equal(seen, middle(of, images))
    moves = name in ("rotation", "scaling", "mirroring")
    assert torch.equal(near, middle(of, labels)) != moves


@pytest.mark.parametrize("name", EACH)
def test_as_many_patches_are_changed_as_the_probability_says(name):
    of = NNUNetAugmentation(size=(6, 6, 6), spacing_mm=(1, 1, 1), **NEVER | {name: 0.3})
    images, labels, uniforms = patches(of, count=400)
    seen, _ = of(images, labels, uniforms)
    share = (seen != middle(of, images)).flatten(1).any(1).float().mean().item()
    kept = 0.7
    if name == "mirroring":
        kept = 0.7**3  # along no axis
    if name in ("blur", "low_resolution"):
        kept += 0.3 / 4  # neither of two channels
    assert share == pytest.approx(1 - kept, abs=0.12 if name == "low_resolution" else 0.09)


@pytest.mark.parametrize("kind", [CUBES, SLICES], ids=["cubes", "slices"])
@pytest.mark.parametrize("settings", [{}, ALWAYS], ids=["default", "always"])
def test_a_patch_is_given_the_same_in_any_company(kind, settings):
    of = NNUNetAugmentation(**kind, **settings)
    images, labels, uniforms = patches(of, count=12)
    together = of(images, labels, uniforms)
    for row in range(12):
        alone = of(images[row : row + 1], labels[row : row + 1], uniforms[row : row + 1])
        assert torch.equal(alone[0][0], together[0][row])
        assert torch.equal(alone[1][0], together[1][row])
    assert torch.equal(of(images, labels, uniforms)[0], together[0])


def test_in_slices_no_slice_is_mixed_with_another():
    of = NNUNetAugmentation(**SLICES, **NEVER | {"rotation": 1.0, "scaling": 1.0})
    assert of.reach[0] == 4
    images, labels, uniforms = patches(of)
    images[:], labels[:] = (torch.arange(1, 5)[:, None, None].expand(of.reach),) * 2
    seen, near = of(images, labels, uniforms)
    for z in range(4):
        inside = seen[:, :, z, 6:10, 6:10]
        assert torch.allclose(inside, torch.full_like(inside, z + 1.0))
        assert set(near[:, z].unique().tolist()) <= {0, z + 1}


def test_a_turned_patch_of_full_scale_has_its_corners():
    """By any single angle about one axis; of a cube of 10 those reach 10 sqrt(2) within 30°."""
    of = NNUNetAugmentation(**SLICES, **NEVER | {"rotation": 1.0})
    ones = torch.ones(6, 2, *of.reach), torch.ones(6, *of.reach, dtype=torch.int64)
    _, near = of(*ones, patches(of)[2])
    assert (near == 1).all()
    wide = NNUNetAugmentation(size=(20, 20, 20), spacing_mm=(1, 1, 1), degrees=30.0)
    assert wide.reach == (34, 34, 34)  # 20 (cos 30° + sin 30°) / 0.85 is 32.1


def test_image_and_label_move_together():
    of = NNUNetAugmentation(**CUBES, **NEVER | {"rotation": 1, "scaling": 1, "mirroring": 0.5})
    z, y, x = np.indices(of.reach)
    places = torch.from_numpy(((z // 6) + 2 * (y // 6) + 4 * (x // 6)).astype(np.int64))
    labels = places.expand(6, *of.reach)
    seen, near = of(labels[:, None].float(), labels, patches(of)[2])
    agreed = (seen[:, 0] - near).abs() < 0.5
    assert agreed.float().mean() > 0.75  # but for borders, where one is between labels


def test_the_table_has_one_that_does_nothing():
    assert PATCH_AUGMENTATIONS["none"](**CUBES) is None
    assert PATCH_AUGMENTATIONS["nnunet"](**CUBES).size == (10, 10, 10)


def test_all_settings_that_cannot_be_are_told_at_once():
    with pytest.raises(ValueError, match=r"rotation: 1.5, must be in 0\.\.1") as told:
        NNUNetAugmentation(
            **CUBES,
            rotation=1.5,
            gammas=(0.0, 1.0),
            resolutions=(0.5, 2.0),
            noise_variance=0.0,
            mirror_axes=(3,),
        )
    assert "mirror_axes: (3,), must be of 0, 1 and 2" in str(told.value)
    assert "gammas: (0.0, 1.0), must be two numbers above 0, the least first" in str(told.value)
    assert "resolutions: (0.5, 2.0), must be two numbers in 0..1" in str(told.value)
    assert "noise_variance: 0.0, must be above 0" in str(told.value)
