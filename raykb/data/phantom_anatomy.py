"""What phantoms of the Decathlon's ten tasks are made of: balls, shells and tubes of tissues.

A phantom's parts are drawn one over another, so that what comes later is inside or in front of what
came before.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from raykb.data.phantom_shapes import Ball, Draw, Point, Shape, Shell, Tube, point_of


class Tissue(NamedTuple):
    """What a part is of: its label, and how bright it is in each modality."""

    label: int
    brightness: tuple[float, ...]


Parts = list[tuple[str, Shape]]
"""Names of tissues and where they are, in the order in which they are drawn."""


def _brain(draw: Draw) -> Parts:
    """A tumour: a core in an enhancing shell in an oedema."""
    at, radii = draw.point(0.3), draw.small(0.45, 0.6)
    rim = point_of(0.65 * np.array(radii))
    return [
        ("body", draw.body()),
        ("oedema", Ball(at, radii)),
        ("core", Ball(at, rim)),
        ("enhancing", Shell(at, rim, 0.6)),
    ]


def _heart(draw: Draw) -> Parts:
    """An atrium with two veins, beside a ventricle that is as bright and is not wanted."""
    at = draw.point(0.15, about=(0, draw.half_mm[1] / 3, 0))
    away = draw.point(0.1, about=(0, -draw.half_mm[1] / 2, 0))
    veins = [Tube(at, draw.point(0.6, about=at), draw.length(0.08, 0.12)) for _ in range(2)]
    atrium = Ball(at, draw.wide(0.25, 0.35))
    return [
        ("body", draw.body()),
        ("ventricle", Ball(away, draw.wide(0.2, 0.3))),
        *(("atrium", vein) for vein in veins),
        ("atrium", atrium),
    ]


def _organ_with_lesions(draw: Draw) -> Parts:
    """A large organ with up to three small lesions in it; one case in some has none."""
    at = draw.point(0.1)
    lesions = [
        Ball(draw.point(0.2, about=at), draw.small(0.1, 0.2))
        for _ in range(int(draw.generator.integers(0, 4)))
    ]
    return [
        ("body", draw.body()),
        ("organ", Ball(at, draw.wide(0.5, 0.65))),
        *(("lesion", lesion) for lesion in lesions),
    ]


def _hippocampus(draw: Draw) -> Parts:
    """A thick tube from front to back, of two halves that look alike."""
    middle = draw.point(0.1)
    front = draw.point(0.08, about=(middle[0], middle[1] + 0.5 * draw.half_mm[1], middle[2]))
    back = draw.point(0.08, about=(middle[0], middle[1] - 0.5 * draw.half_mm[1], middle[2]))
    radius = draw.length(0.22, 0.3)
    return [
        ("body", draw.body()),
        ("posterior", Tube(back, middle, radius)),
        ("anterior", Tube(middle, front, radius)),
    ]


def _prostate(draw: Draw) -> Parts:
    """A zone in the shell of another."""
    at, radii = draw.point(0.15), draw.wide(0.4, 0.55)
    return [("body", draw.body()), ("transition", Ball(at, radii)), ("rim", Shell(at, radii, 0.7))]


def _lung(draw: Draw) -> Parts:
    """Two dark lungs, in one of which is something small."""
    side = draw.half_mm[2] * 0.42
    lungs = [Ball((0, 0, x), point_of(draw.half_mm * [0.7, 0.55, 0.35])) for x in (-side, side)]
    middle = lungs[int(draw.generator.integers(2))].centre_mm
    lesion = Ball(draw.point(0.15, about=middle), draw.small(0.1, 0.2))
    return [("body", draw.body()), *(("lung", lung) for lung in lungs), ("lesion", lesion)]


def _pancreas(draw: Draw) -> Parts:
    """A bent tube with a lesion at its head."""
    bend = draw.point(0.15)
    ends = [draw.point(0.1, about=(bend[0], bend[1], x * draw.half_mm[2])) for x in (-0.5, 0.5)]
    radius = draw.length(0.2, 0.28)
    return [
        ("body", draw.body()),
        *(("organ", Tube(bend, end, radius)) for end in ends),
        ("lesion", Ball(ends[0], draw.small(0.1, 0.18))),
    ]


def _vessels(draw: Draw) -> Parts:
    """A tree of thin tubes in an organ, with a lesion between them."""
    root, fork = draw.point(0.1, about=(0, -0.4 * draw.half_mm[1], 0)), draw.point(0.1)
    ends = [draw.point(0.15, about=(0, 0.4 * draw.half_mm[1], x)) for x in _sides(draw, 0.4)]
    radius = draw.length(0.07, 0.11)
    lesion = Ball(draw.point(0.4), draw.small(0.15, 0.25))
    return [
        ("body", draw.body()),
        ("organ", Ball((0, 0, 0), draw.wide(0.65, 0.75))),
        ("lesion", lesion),
        *(("vessel", Tube(fork, end, radius)) for end in (root, *ends)),
    ]


def _sides(draw: Draw, share: float) -> tuple[float, float]:
    return -share * draw.half_mm[2], share * draw.half_mm[2]


def _spleen(draw: Draw) -> Parts:
    """An organ at one side, beside a larger one that looks much like it."""
    left, right = _sides(draw, 0.45)
    return [
        ("body", draw.body()),
        ("liver", Ball(draw.point(0.1, about=(0, 0, right)), draw.wide(0.35, 0.45))),
        ("spleen", Ball(draw.point(0.1, about=(0, 0, left)), draw.wide(0.25, 0.35))),
    ]


def _colon(draw: Draw) -> Parts:
    """A tube full of gas, with something small on its wall."""
    left, right = _sides(draw, 0.55)
    start, end = (draw.point(0.15, about=(0, 0, x)) for x in (left, right))
    radius, share = draw.length(0.2, 0.28), draw.number(0.25, 0.75)
    middle = np.add(start, share * np.subtract(end, start))
    at = draw.point(0, about=point_of(middle + np.array([0, radius, 0])))
    return [
        ("body", draw.body()),
        ("wall", Tube(start, end, radius + 2 * draw.pixel_mm)),
        ("gas", Tube(start, end, radius)),
        ("lesion", Ball(at, draw.small(0.12, 0.2))),
    ]


# ---------------------------------------------------------------------- the table


class Anatomy(NamedTuple):
    """One of ten tasks.

    ``spacing_mm`` is along z, y and x; ``axes`` are those of the files, ``turned_degrees`` oblique;
    ``stored`` are the types of image and label there.
    """

    name: str
    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    tissues: Mapping[str, Tissue]
    parts: Callable[[Draw], Parts]
    spacing_mm: Point
    axes: str = "RAS"
    turned_degrees: float = 0.0
    stored: tuple[str, str] = ("int16", "uint8")


_MRI, _CT = ("MRI",), ("CT",)
_SOFT = Tissue(0, (40,))  # of a body in CT, in HU

ANATOMIES: dict[int, Anatomy] = {
    1: Anatomy(
        "BrainTumour",
        ("FLAIR", "T1w", "T1gd", "T2w"),
        ("background", "edema", "non-enhancing tumor", "enhancing tumour"),
        {
            "body": Tissue(0, (400, 500, 500, 400)),
            "oedema": Tissue(1, (750, 420, 430, 700)),
            "core": Tissue(2, (550, 330, 340, 620)),
            "enhancing": Tissue(3, (600, 450, 900, 560)),
        },
        _brain,
        (1.0, 1.0, 1.0),
        axes="LPS",
        stored=("float32", "uint8"),
    ),
    2: Anatomy(
        "Heart",
        _MRI,
        ("background", "left atrium"),
        {"body": Tissue(0, (300,)), "ventricle": Tissue(0, (620,)), "atrium": Tissue(1, (700,))},
        _heart,
        (1.4, 1.25, 1.25),
        turned_degrees=12.0,
        stored=("float32", "float32"),
    ),
    3: Anatomy(
        "Liver",
        _CT,
        ("background", "liver", "cancer"),
        {"body": _SOFT, "organ": Tissue(1, (120,)), "lesion": Tissue(2, (60,))},
        _organ_with_lesions,
        (1.0, 0.8, 0.8),
        axes="LAS",
    ),
    4: Anatomy(
        "Hippocampus",
        _MRI,
        ("background", "Anterior", "Posterior"),
        {"body": Tissue(0, (350,)), "anterior": Tissue(1, (500,)), "posterior": Tissue(2, (500,))},
        _hippocampus,
        (1.0, 1.0, 1.0),
        stored=("uint8", "uint8"),
    ),
    5: Anatomy(
        "Prostate",
        ("T2", "ADC"),
        ("background", "PZ", "TZ"),
        {
            "body": Tissue(0, (300, 500)),
            "transition": Tissue(2, (420, 750)),
            "rim": Tissue(1, (650, 950)),
        },
        _prostate,
        (3.5, 0.7, 0.7),
        turned_degrees=5.0,
        stored=("uint16", "uint8"),
    ),
    6: Anatomy(
        "Lung",
        _CT,
        ("background", "cancer"),
        {"body": _SOFT, "lung": Tissue(0, (-820,)), "lesion": Tissue(1, (20,))},
        _lung,
        (1.25, 0.8, 0.8),
        axes="LAS",
    ),
    7: Anatomy(
        "Pancreas",
        _CT,
        ("background", "pancreas", "cancer"),
        {"body": Tissue(0, (-60,)), "organ": Tissue(1, (110,)), "lesion": Tissue(2, (40,))},
        _pancreas,
        (2.5, 0.8, 0.8),
    ),
    8: Anatomy(
        "HepaticVessel",
        _CT,
        ("background", "Vessel", "Tumour"),
        {
            "body": _SOFT,
            "organ": Tissue(0, (110,)),
            "vessel": Tissue(1, (200,)),
            "lesion": Tissue(2, (50,)),
        },
        _vessels,
        (4.0, 0.8, 0.8),
        axes="LAS",
    ),
    9: Anatomy(
        "Spleen",
        _CT,
        ("background", "spleen"),
        {"body": _SOFT, "liver": Tissue(0, (110,)), "spleen": Tissue(1, (140,))},
        _spleen,
        (4.0, 0.8, 0.8),
    ),
    10: Anatomy(
        "Colon",
        _CT,
        ("background", "colon cancer primaries"),
        {
            "body": Tissue(0, (-80,)),
            "wall": Tissue(0, (40,)),
            "gas": Tissue(0, (-950,)),
            "lesion": Tissue(1, (110,)),
        },
        _colon,
        (4.0, 0.8, 0.8),
        axes="LPS",
    ),
}
"""The Decathlon's tasks by number: names, modalities and labels as these have them."""
