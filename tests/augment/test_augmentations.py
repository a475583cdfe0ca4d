"""What final trainings compare: keyed by (seed, epoch, sample id), whatever is behind it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from raykb.augment.augmentations import AUGMENTATIONS, Augmentation, view_after
from raykb.augment.policy import Policy
from raykb.engine.seeding import keyed_uniform, stream_seed

POLICY = Policy([[("Rotate", 1.0, 0.9), ("Invert", 0.5, 0.0)], [("ShearX", 1.0, 0.1)]])
ARGUMENTS: dict[str, dict[str, Any]] = {name: {"seed": 3} for name in AUGMENTATIONS}
ARGUMENTS["searched_policy"] |= {"searched": Policy.random(5, 2, 4)}
ARGUMENTS["policy"]["policy"] = POLICY
RANDOM = [name for name in AUGMENTATIONS if name not in ("none", "cutout")]
each = pytest.mark.parametrize("name", AUGMENTATIONS)
each_random = pytest.mark.parametrize("name", RANDOM)


def build(name: str, **changes: Any) -> Augmentation:
    return AUGMENTATIONS[name](**(ARGUMENTS[name] | changes))


def pictures(channels: int = 3) -> tuple[Tensor, np.ndarray]:
    g = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (40, channels, 16, 16), generator=g).to(torch.uint8)
    return images, np.arange(40) * 7


@pytest.mark.parametrize("channels", [1, 3])
@each
def test_contract(name: str, channels: int) -> None:
    augmentation = pickle.loads(pickle.dumps(build(name)))
    (images, ids), before = pictures(channels), pictures(channels)[0]
    state = torch.get_rng_state()
    out = augmentation(images, ids, 2)
    assert (out.shape, out.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert augmentation.cutout is (name != "none")
    assert torch.equal(out, build(name)(images, torch.from_numpy(ids), 2))


@each
def test_a_sample_depends_on_seed_epoch_and_id_alone(name: str) -> None:
    images, ids = pictures()
    augmentation = build(name)
    out = augmentation(images, ids, 0)
    torch.manual_seed(99)
    order = np.random.default_rng(0).permutation(40)
    assert torch.equal(augmentation(images[order], ids[order], 0), out[order])
    assert torch.equal(augmentation(images[5:6], ids[5:6], 0), out[5:6])


@each_random
def test_another_epoch_seed_or_id_is_another_augmentation(name: str) -> None:
    images, ids = pictures()
    out = build(name)(images, ids, 0)
    assert not torch.equal(out, build(name)(images, ids, 1))
    assert not torch.equal(out, build(name)(images, ids + 1, 0))
    assert not torch.equal(out, build(name, seed=4)(images, ids, 0))


@each_random
def test_equal_images_of_one_batch_are_augmented_apart(name: str) -> None:
    images = pictures()[0][:1].expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in build(name)(images, np.arange(64), 0)}) > 5


@pytest.mark.parametrize("name", ["none", "cutout"])
def test_images_stay_as_they_are(name: str) -> None:
    images, ids = pictures()
    assert torch.equal(build(name)(images, ids, 0), images)


@pytest.mark.parametrize(
    ("name", "arguments", "transform"),
    [
        ("trivial_augment_wide", {"num_magnitude_bins": 5}, v2.TrivialAugmentWide(5)),
        ("rand_augment", {"num_ops": 3, "magnitude": 14}, v2.RandAugment(3, 14)),
        ("rand_augment", {}, v2.RandAugment(2, 9)),
    ],
)
def test_torchvisions_transform_is_applied_to_each_image(
    name: str, arguments: dict[str, int], transform: v2.Transform
) -> None:
    images, ids = pictures()
    out = build(name, **arguments)(images, ids, 4)
    keys = keyed_uniform(stream_seed(3, "augment", 4), ids, 1)[:, 0] * 2.0**53
    for image, key, augmented in zip(images, keys.tolist(), out, strict=True):
        torch.manual_seed(int(key))
        assert torch.equal(transform(image), augmented)


def test_policy_comes_as_an_object_or_from_a_file(tmp_path: Path) -> None:
    images, ids = pictures()
    (tmp_path / "policy.json").write_text(POLICY.to_json())
    out = build("policy")(images, ids, 1)
    for path in (tmp_path / "policy.json", str(tmp_path / "policy.json")):
        assert torch.equal(build("policy", policy=path)(images, ids, 1), out)
    uniforms = keyed_uniform(stream_seed(3, "augment", 1), ids, POLICY.draws)
    assert torch.equal(out, POLICY.apply(images, draws=POLICY.draw(uniforms)))


def test_random_policy_has_the_size_asked_for() -> None:
    images, ids = pictures()
    augmentation = build("random_policy", num_sub_policies=7, num_operations=3)
    expected = AUGMENTATIONS["policy"](Policy.random(7, 3, 3), seed=3)
    assert torch.equal(augmentation(images, ids, 0), expected(images, ids, 0))


def test_cutout_of_the_view_is_left_out_where_an_augmentation_goes_without() -> None:
    view = {"name": "crop_flip", "cutout": 16}
    plain, with_it = (AUGMENTATIONS[name](seed=0) for name in ("none", "cutout"))
    assert view_after(with_it, view) == view
    assert view_after(plain, view) == view | {"cutout": 0}
    assert view_after(plain, {"name": "resized_crop"}) == {"name": "resized_crop"}
