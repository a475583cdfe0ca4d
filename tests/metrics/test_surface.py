import math
import sys

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from shapes import ball, box, cube

from raykb.metrics.surface import surface_dice, surface_dice_by_label

A, EMPTY = cube(8, 8, 8, 8), np.zeros((24, 24, 24), bool)
ONE = (1.0, 1.0, 1.0)

# definition, shift, tolerances, figures; a cube of side 8 against itself shifted along axis 0
SHIFTED = [
    *(("edge", k, (0,), (7 * (8 - k) / 74,)) for k in (1, 2, 3, 4)),
    ("edge", 1, (1,), (1.0,)),
    ("edge", 2, (1, 2), (0.729730, 1.0)),
    ("edge", 3, (1, 3), (0.635135, 1.0)),
    ("edge", 4, (1, 4), (0.540541, 1.0)),
    ("subvoxel", 1, (0, 1), (0.665854, 1.0)),
    ("subvoxel", 2, (0, 1, 2), (0.579045, 0.733435, 1.0)),
    ("subvoxel", 3, (0, 1, 3), (0.492236, 0.646626, 1.0)),
    ("subvoxel", 4, (0, 1, 4), (0.405427, 0.559817, 1.0)),
]


def dice_at(tolerances, *arguments, definition):
    return [surface_dice(*arguments, tolerance, definition) for tolerance in tolerances]


@pytest.fixture(params=["subvoxel", "edge"])
def definition(request):
    return request.param


@pytest.mark.parametrize(("name", "shift", "tolerances", "figures"), SHIFTED)
def test_cubes_shifted_along_an_axis(name, shift, tolerances, figures):
    made = dice_at(tolerances, A, cube(8, 8 + shift, 8, 8), ONE, definition=name)
    assert made == pytest.approx(list(figures), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("edge", [0.662162, 0.729730, 0.770270, 1.0]),
        ("subvoxel", [0.827685, 0.856315, 0.875401, 1.0]),
    ],
)
def test_spacing_reaches_distances_and_areas(name, figures):
    made = dice_at(range(4), A, cube(8, 9, 8, 8), (3.0, 1.0, 1.0), definition=name)
    assert made == pytest.approx(figures, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("edge", [0.0, 0.867347, 0.989796, 1.0]),
        ("subvoxel", [0.0, 0.915038, 0.998116, 1.0]),
    ],
)
def test_a_cube_in_a_concentric_one(name, figures):
    made = dice_at((0, 1, 1.5, 2), A, cube(10, 7, 7, 7), ONE, definition=name)
    assert made == pytest.approx(figures, abs=1e-6)


@pytest.mark.parametrize(("name", "figures"), [("edge", [0.0, 1.0]), ("subvoxel", [0.5, 1.0])])
def test_single_voxels_two_apart(name, figures):
    a, b = cube(1, 5, 5, 5), cube(1, 5, 5, 7)
    assert dice_at((1, 2), a, b, (3.0, 2.0, 1.0), definition=name) == pytest.approx(figures)


def test_the_slab_of_the_reference_implementation():
    a, b = (box((0, end), (0, 100), (0, 100), size=100) for end in (50, 51))
    assert surface_dice(a, b, (2.0, 1.0, 1.0), 1.0) == pytest.approx(0.836, abs=5e-4)


def test_one_missing_voxel_tells_the_area_of_the_rest():
    """All elements that two surfaces share are within 0: their share tells each area."""
    far = cube(8, 0, 0, 0) | cube(1, 20, 20, 20)
    made = surface_dice(cube(8, 0, 0, 0), far, ONE, 0.0, "edge")
    assert made == 2 * 296 / (2 * 296 + 1)  # 8³ - 6³ border voxels
    voxel = 8 * 3**0.5 / 8  # each corner cut by a triangle
    made = surface_dice(cube(8, 0, 0, 0), far, ONE, 0.0)
    assert made == pytest.approx(2 * 355.129 / (2 * 355.129 + voxel), abs=1e-6)


def test_it_is_undefined_of_two_empty_masks_and_0_with_one(definition):
    assert math.isnan(surface_dice(EMPTY, EMPTY, ONE, 1.0, definition))
    assert surface_dice(EMPTY, A, ONE, 100.0, definition) == 0.0
    assert surface_dice(A, EMPTY, ONE, 100.0, definition) == 0.0


def test_it_is_symmetric_and_1_of_itself(definition):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 7, 8)) < 0.3
    spacing_mm = (2.0, 1.0, 0.5)
    assert surface_dice(a, a, spacing_mm, 0.0, definition) == 1.0
    made = surface_dice(a, b, spacing_mm, 0.5, definition)
    assert made == pytest.approx(surface_dice(b, a, spacing_mm, 0.5, definition))
    assert 0.0 < made < 1.0


def test_spacing_and_tolerance_scale_together(definition):
    a, b = ball(6, 15, 15, 15, size=30), ball(7, 16, 15, 14, size=30)
    made = surface_dice(a, b, (1.0, 0.5, 0.8), 1.1, definition)
    scaled = surface_dice(a, b, (10.0, 5.0, 8.0), 11.0, definition)
    assert made == pytest.approx(scaled)
    assert 0.0 < made < 1.0


def test_the_frame_of_the_array_does_not_matter(definition):
    """An object at the rim has a surface there, as one in the middle has."""
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 5, 6, 7)) < 0.5
    framed = [np.pad(mask, 3) for mask in (a, b)]
    made = surface_dice(a, b, (1.0, 2.0, 3.0), 1.0, definition)
    assert made == pytest.approx(surface_dice(*framed, (1.0, 2.0, 3.0), 1.0, definition))


def test_a_step_that_is_the_tolerance_but_for_rounding_is_within_it(definition):
    a, b = cube(1, 5, 5, 5), cube(1, 5, 5, 8)
    assert 3 * 0.1 > 0.3
    assert surface_dice(a, b, (1.0, 1.0, 0.1), 0.3, definition) == 1.0


def test_views_read_only_arrays_and_tensors_are_taken(definition):
    b = ball(6, 10, 11, 12, size=24)
    expected = surface_dice(A, b, ONE, 1.0, definition)
    flipped = [mask[::-1, :, ::-1] for mask in (A, b)]
    for mask in flipped:
        mask.setflags(write=False)
    assert surface_dice(*flipped, ONE, 1.0, "edge") == surface_dice(A, b, ONE, 1.0, "edge")
    assert 0.0 < surface_dice(*flipped, ONE, 1.0, definition) < 1.0
    fixed = A.copy()
    fixed.setflags(write=False)
    assert surface_dice(fixed, torch.tensor(b), ONE, 1.0, definition) == expected


def naive_edge(a, b, spacing_mm, tolerance_mm):
    """By loops: points of both borders, and all their distances."""

    def border(mask):
        padded, points = np.pad(mask, 1), []
        for place in np.argwhere(padded):
            steps = [*np.eye(mask.ndim, dtype=int), *-np.eye(mask.ndim, dtype=int)]
            if not all(padded[tuple(place + step)] for step in steps):
                points.append(place * np.array(spacing_mm))
        return np.array(points)

    ours, theirs = border(a), border(b)
    distances = np.linalg.norm(ours[:, None] - theirs, axis=-1)
    near = (distances.min(1) <= tolerance_mm).sum() + (distances.min(0) <= tolerance_mm).sum()
    return near / (len(ours) + len(theirs))


@pytest.mark.parametrize("shape", [(9,), (8, 9), (5, 6, 7), (3, 4, 3, 4)])
def test_edge_is_what_loops_find_in_any_dimension(shape):
    rng = np.random.default_rng(2)
    a, b = rng.random((2, *shape)) < 0.7
    spacing_mm = (1.5, 1.0, 0.75, 2.0)[: len(shape)]
    for tolerance_mm in (0.0, 1.0, 1.5):
        made = surface_dice(a, b, spacing_mm, tolerance_mm, "edge")
        assert made == naive_edge(a, b, spacing_mm, tolerance_mm)


@pytest.mark.parametrize("shape", [(12, 13), (9, 10, 11)])
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own call
def test_both_definitions_are_those_of_monai(shape, definition):
    rng = np.random.default_rng(3)
    a, b = rng.random((2, *shape)) < 0.1
    spacing_mm = (2.0, 1.0, 0.7)[: len(shape)]
    theirs = compute_surface_dice(
        torch.tensor(a)[None, None],
        torch.tensor(b)[None, None],
        [1.2],
        include_background=True,
        spacing=list(spacing_mm),
        use_subvoxels=definition == "subvoxel",
    )
    made = surface_dice(a, b, spacing_mm, 1.2, definition)
    assert made == pytest.approx(theirs.item(), abs=1e-6)


def test_an_outline_in_two_dimensions_has_its_length():
    high, wide, cut = 4, 6, math.hypot(1.0, 5.0) / 2  # a corner of the outline is cut
    a = box((1, 1 + high), (1, 1 + wide))
    length = 2 * (high - 1) * 1.0 + 2 * (wide - 1) * 5.0 + 4 * cut
    made = surface_dice(a, a | box((20, 21), (20, 21)), (1.0, 5.0), 0.0)
    assert made == pytest.approx(2 * length / (2 * length + 4 * cut), abs=1e-6)


def test_label_maps_have_a_surface_dice_for_each_name(definition):
    prediction, reference = A.astype(np.uint8), 1 * cube(8, 10, 8, 8) + 2 * cube(2, 0, 0, 0)
    made = surface_dice_by_label(
        prediction,
        reference,
        ("background", "a", "b", "c"),
        spacing_mm=ONE,
        tolerance_mm=1.0,
        definition=definition,
    )
    expected = surface_dice(A, cube(8, 10, 8, 8), ONE, 1.0, definition)
    assert (made["a"], made["b"]) == (expected, 0.0)
    assert math.isnan(made["c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE, -1.0), r"tolerance_mm=-1.0: must be at least 0"),
        ((ONE, math.inf), r"tolerance_mm=inf: must be at least 0"),
        (((1.0, 1.0), 1.0), r"spacing_mm=\(1.0, 1.0\): must be 3 lengths above 0"),
        (((1.0, 0.0, 1.0), 1.0), r"spacing_mm=.*: must be 3 lengths above 0"),
        ((ONE, 1.0, "voxel"), "definition='voxel': must be one of subvoxel, edge"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        surface_dice(A, A, *arguments)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ValueError, match=r"4 axes, must have 2 or 3; .*spacing_mm.*tolerance_mm"):
        surface_dice(np.ones((2,) * 4, bool), np.ones((2,) * 4, bool), ONE, -2.0)


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="prediction: uint8, must be booleans"):
        surface_dice(A.astype(np.uint8), A, ONE, 1.0)


def test_without_monai_the_error_names_the_remedy_and_edge_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.metrics.utils", None)
    with pytest.raises(ImportError, match=r"run: pip install 'raykb\[medical\]'"):
        surface_dice(A, A, ONE, 1.0)
    assert surface_dice(A, A, ONE, 1.0, "edge") == 1.0
