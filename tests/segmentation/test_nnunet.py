"""Plans keep nnU-Net's rules, are a function of the fingerprint alone, and survive JSON."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_fingerprints import CT, uniform

import raykb.segmentation
from raykb.models.planned_unet import PlannedUNet
from raykb.segmentation.fingerprint import Fingerprint
from raykb.segmentation.nnunet import plan, target_spacing
from raykb.segmentation.plans import Plan
from raykb.segmentation.topology import Topology, feature_map_size

SMALL = uniform((36, 50, 35), (1, 1, 1), cases=260, labels=3)
LARGE = uniform((252, 512, 512), (1.24, 0.79, 0.79), cases=63, modalities=("CT",))
FLAT = uniform((20, 320, 319), (3.6, 0.62, 0.62), cases=32, modalities=("T2", "ADC"), labels=3)


# ---------------------------------------------------------------------- rules 1 and 2


def mixed(shapes, spacings_mm):
    one = uniform(shapes[0], spacings_mm[0])
    return replace(one, shapes=tuple(shapes), spacings_mm=tuple(spacings_mm))


def test_the_spacing_is_the_median_along_each_axis():
    cases = mixed([(9, 9, 9)] * 3, [(1.0, 2.0, 1.0), (2.0, 1.0, 1.0), (3.0, 1.5, 1.0)])
    assert target_spacing(cases).tolist() == [2.0, 1.5, 1.0]


THICK = [(float(mm), 1.0, 1.0) for mm in range(4, 15)]  # median 9, 10th percentile 5


@pytest.mark.parametrize(
    ("slices", "spacings", "wanted"),
    [
        (20, THICK, 5.0),
        (60, THICK, 9.0),  # has a third of the voxels or more
        (20, [(mm / 3.5, 1.0, 1.0) for mm, _, _ in THICK], 9 / 3.5),  # is not above 3 times
        (20, [(mm, 2.5, 1.0) for mm, _, _ in THICK], 5.0),
        (20, [(0.5, 1.0, 1.0)] * 5 + THICK[5:], 1.00001),  # never finer than the others
    ],
)
def test_thick_slices_are_resampled_to_the_finer_ones_among_them(slices, spacings, wanted):
    found = target_spacing(mixed([(slices, 100, 100)] * 11, spacings))
    assert found[0] == pytest.approx(wanted)


def test_the_coarsest_axis_comes_first():
    found = plan(uniform((512, 512, 90), (0.8, 0.8, 5)))
    assert found.transpose == (2, 0, 1)
    full = found.configuration("3d_fullres")
    assert full.spacing_mm == (5.0, 0.8, 0.8)
    assert full.median_shape == (90.0, 512.0, 512.0)
    same = plan(uniform((90, 512, 512), (5, 0.8, 0.8)))
    assert same.configurations == found.configurations


def test_the_median_shape_is_that_of_resampled_cases():
    cases = mixed([(10, 20, 20), (20, 40, 40), (40, 40, 40)], [(2.0,) * 3, (1.0,) * 3, (1.0,) * 3])
    assert plan(cases).configuration("3d_fullres").median_shape == (20.0, 40.0, 40.0)


# ---------------------------------------------------------------------- rule 3


def test_ct_is_scaled_by_the_foreground_and_all_else_by_itself():
    first, second = plan(uniform((9, 9, 9), (1, 1, 1), modalities=("ct", "PET"))).normalisation
    assert (first.scheme, first.nonzero, first.intensities) == ("ct", False, CT)
    assert (second.scheme, second.nonzero, second.intensities) == ("z_score", False, None)


@pytest.mark.parametrize(("relative_size", "nonzero"), [(0.74, True), (0.75, False)])
def test_what_is_zero_is_left_out_where_the_crop_took_much(relative_size, nonzero):
    cases = uniform((9, 9, 9), (1, 1, 1), modalities=("T1", "CT"), relative_size=relative_size)
    assert [channel.nonzero for channel in plan(cases).normalisation] == [nonzero, False]


# ---------------------------------------------------------------------- rules 4 to 6


@pytest.mark.parametrize(
    ("cases", "name", "patch_size", "batch_size", "stages"),
    [
        (SMALL, "3d_fullres", (40, 56, 40), 9, 4),
        (SMALL, "2d", (56, 40), 366, 4),
        (FLAT, "3d_fullres", (20, 320, 256), 2, 7),
        (LARGE, "3d_fullres", (80, 192, 160), 2, 6),
        (LARGE, "2d", (512, 512), 12, 8),
    ],
)
def test_patches_and_batches_of_familiar_data(cases, name, patch_size, batch_size, stages):
    found = plan(cases).configuration(name)
    assert (found.patch_size, found.batch_size) == (patch_size, batch_size)
    assert len(found.widths) == len(found.strides) == len(found.kernel_sizes) == stages


def test_a_patch_is_no_longer_than_the_median_shape_but_for_its_padding():
    found = plan(uniform((33, 47, 61), (1, 1, 1))).configuration("3d_fullres")
    assert found.patch_size == (40, 48, 64)


def test_a_batch_has_a_twentieth_of_all_voxels_and_two_patches_at_least():
    many, few = (plan(replace(SMALL, **cases_of(SMALL, count))) for count in (260, 10))
    voxels = 36 * 50 * 35 / (40 * 56 * 40)
    assert many.configuration("3d_fullres").batch_size == round(260 * voxels / 20)
    assert few.configuration("3d_fullres").batch_size == 2


def cases_of(cases, count):
    return {"shapes": cases.shapes[:1] * count, "spacings_mm": cases.spacings_mm[:1] * count}


def test_more_memory_makes_patches_no_smaller_and_then_batches_larger():
    sizes = [plan(LARGE, gb).configuration("3d_fullres") for gb in (2, 4, 8, 16, 32)]
    voxels = [np.prod(found.patch_size) for found in sizes]
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[-1]
    assert {found.batch_size for found in sizes} == {2}
    assert [plan(LARGE, gb).configuration("2d").batch_size for gb in (8, 16)] == [12, 25]


@pytest.mark.parametrize(
    ("memory_gb", "wanted"), [(0.0, "memory_gb: 0.0, must be more: 2d has no"), (-1.0, "-1.0")]
)
def test_a_memory_without_room_is_refused(memory_gb, wanted):
    with pytest.raises(ValueError, match=wanted):
        plan(SMALL, memory_gb)


@pytest.mark.parametrize("cases", [SMALL, FLAT, LARGE])
@pytest.mark.parametrize("number", [0, 1])
def test_the_network_of_a_plan_takes_its_patch_and_puts_out_what_was_estimated(cases, number):
    found = plan(cases).configurations[number]
    put_out = []
    with torch.device("meta"):
        network = PlannedUNet(cases.labels, 1, **found.network, deep_supervision=False)
        for module in network.modules():
            if type(module).__name__.startswith("Conv"):
                module.register_forward_hook(lambda *seen: put_out.append(seen[2].numel()))
        logits = network(torch.empty(1, 1, *found.patch_size))
    assert logits.shape == (1, cases.labels, *found.patch_size)
    shape = Topology(found.patch_size, found.strides, found.kernel_sizes)
    assert sum(put_out) == feature_map_size(shape, found.widths, cases.labels)


# ---------------------------------------------------------------------- rule 7


def test_large_cases_have_a_low_resolution_and_dice_over_the_batch_at_the_full_one():
    found = plan(LARGE)
    assert found.names == ("2d", "3d_fullres", "3d_lowres")
    assert found.cascade
    full, low = found.configurations[1:]
    assert (full.batch_dice, low.batch_dice) == (True, False)
    steps = np.log(np.array(low.spacing_mm) / full.spacing_mm) / np.log(1.03)
    assert steps == pytest.approx(np.round(steps))
    assert np.prod(low.patch_size) >= 0.25 * np.prod(np.array(full.spacing_mm) / low.spacing_mm) * (
        np.prod(full.median_shape)
    )


def test_small_cases_have_no_low_resolution():
    found = plan(SMALL)
    assert found.names == ("2d", "3d_fullres")
    assert not found.cascade
    assert [c.batch_dice for c in found.configurations] == [True, False]


def test_a_low_resolution_with_more_than_half_of_the_voxels_is_dropped():
    cases = uniform((49, 512, 512), (5, 0.8, 0.8))
    full = plan(cases).configuration("3d_fullres")
    assert 0.5 * 0.25 < np.prod(full.patch_size) / np.prod(full.median_shape) < 0.25
    assert plan(cases).names == ("2d", "3d_fullres")
    assert not full.batch_dice


def test_axes_finer_than_half_the_coarsest_are_coarsened_first():
    full, low = plan(uniform((90, 512, 512), (5, 0.79, 0.79))).configurations[1:]
    assert low.spacing_mm[0] == full.spacing_mm[0] == 5.0
    assert low.spacing_mm[1] > full.spacing_mm[1]


def test_one_slice_is_planned_in_two_dimensions_alone():
    assert plan(uniform((1, 300, 200), (1, 1, 1))).names == ("2d",)


def test_no_axis_is_coarsened_away():
    low = plan(uniform((2, 400, 400), (1, 1, 1)), 0.005).configuration("3d_lowres")
    assert low.spacing_mm[0] > 4  # two slices and half of one
    assert low.median_shape[0] == 1.0


# ---------------------------------------------------------------------- a pure function


def test_equal_fingerprints_give_equal_plans_and_others_another_hash():
    assert plan(SMALL).hash == plan(replace(SMALL)).hash
    others = [plan(SMALL, 1), plan(LARGE), plan(replace(SMALL, labels=4))]
    hashes = {found.hash for found in (plan(SMALL), *others)}
    assert len(hashes) == 4
    assert plan(replace(SMALL, intensities=(CT,))).hash == plan(SMALL).hash


def test_intensities_are_of_no_account_where_nothing_is_scaled_by_them():
    other = replace(CT, mean=7.0)
    assert plan(replace(SMALL, intensities=(other,))).hash == plan(SMALL).hash
    assert plan(replace(LARGE, intensities=(other,))).hash != plan(LARGE).hash


def test_no_task_is_named():
    names = ["brain", "heart", "liver", "hippocamp", "prostate", "lung", "pancreas"]
    names += ["vessel", "spleen", "colon", "task0", "decathlon"]
    for path in Path(raykb.segmentation.__file__).parent.glob("*.py"):
        text = path.read_text().casefold()
        assert [name for name in names if name in text] == [], path.name


# ---------------------------------------------------------------------- JSON


@pytest.mark.parametrize("cases", [SMALL, LARGE, FLAT])
def test_json_brings_the_same_plan_back(cases):
    found = plan(cases)
    again = Plan.from_json(found.to_json())
    assert again == found
    assert again.to_json() == found.to_json()
    assert again.hash == found.hash
    assert len(found.hash) == 16


def test_a_known_configuration_is_asked_for_by_name():
    with pytest.raises(KeyError, match="configuration: '3d', this plan has 2d, 3d_fullres"):
        plan(SMALL).configuration("3d")


def changed(path, value):
    content = json.loads(plan(SMALL).to_json())
    *above, last = path
    place = content
    for key in above:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


FIRST = ("configurations", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"raykb.plan: not JSON \(.*\); must be what Plan.to_json\(\) writes"),
        ("[]", "format: 'list', must be 'raykb.plan'"),
        (SMALL.to_json(), "format: 'raykb.fingerprint', must be 'raykb.plan'"),
        (changed(["version"], 2), "version: 2 of raykb.plan, must be 1; make it anew"),
        (changed(["labels"], None), r"raykb.plan: \['configurations', 'normalisation', 'tran"),
        (changed(["colour"], 1), r"raykb.plan: \['colour', 'configurations', .* and no others"),
        (changed(["labels"], True), "raykb.plan.labels: True, must be of type int"),
        (changed(["labels"], 2.5), "raykb.plan.labels: 2.5, must be of type int"),
        (changed(["transpose"], [0, 1]), r"transpose: \[0, 1\], must be a list of 3"),
        (changed(["transpose"], [0, 1, 1]), r"transpose: \(0, 1, 1\), must have 0, 1 and 2"),
        (changed(["transpose"], "012"), "transpose: '012', must be a list"),
        (changed(["configurations"], []), r"configurations: \(\), must be at least one"),
        (changed([*FIRST, "name"], "4d"), r"configurations\[0\].name: '4d', must be '2d' or"),
        (changed([*FIRST, "name"], "3d_fullres"), "must be at least one, each once"),
        (changed([*FIRST, "spacing_mm", 1], "1"), r"spacing_mm\[1\]: '1', must be of type float"),
        (changed([*FIRST, "strides", 0], [1]), r"2d, strides\[0\]: has 1 entries, must have 2"),
        (changed([*FIRST, "widths"], [32]), "2d, strides: has 4 entries, must have 1, for a patch"),
        (changed([*FIRST, "spacing_mm"], [1, 1, 1]), "2d, spacing_mm: has 3 entries, must have 2"),
        (changed(["normalisation", 0, "scheme"], "rgb"), "scheme: 'rgb', must be 'ct' or 'z_sco"),
    ],
)
def test_what_is_no_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_whole_numbers_are_read_as_what_they_stand_for():
    text = changed([*FIRST, "spacing_mm"], [1, 1])
    assert Plan.from_json(text) == plan(SMALL)
    assert Plan.from_json(text).hash == plan(SMALL).hash


def test_intensities_of_a_channel_come_back():
    again = Plan.from_json(plan(LARGE).to_json())
    assert again.normalisation[0].intensities == CT


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_the_plan_does_not_depend_on_the_order_of_the_other_axes(axes):
    shape, spacing = np.array((30, 90, 90))[list(axes)], np.array((4.0, 1.0, 1.0))[list(axes)]
    found = plan(uniform(tuple(shape.tolist()), tuple(spacing.tolist())))
    assert found.configuration("3d_fullres") == plan(
        uniform((30, 90, 90), (4, 1, 1))
    ).configuration("3d_fullres")


def test_a_fingerprint_is_no_plan():
    with pytest.raises(ValueError, match=r"format: 'raykb.plan', must be"):
        Fingerprint.from_json(plan(SMALL).to_json())
