"""A small Decathlon of phantoms: ten tasks of known geometry in the Decathlon's own layout.

What is drawn is in :mod:`raykb.data.phantom_anatomy`. Images are as scanners make them in outline:
CT in HU with noise; MR in numbers of its own, under a bias field that differs from case to case.
They show that all works, and how methods compare where truth is known; they say nothing of
patients.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raykb.data.atomic import make_folder
from raykb.data.decathlon import write_dataset
from raykb.data.nifti import Geometry, require_nibabel, write_nifti
from raykb.data.phantom_anatomy import ANATOMIES, Anatomy, Parts
from raykb.data.phantom_shapes import Draw, Grid
from raykb.engine.foreign import parsed, read_text
from raykb.engine.seeding import stream_seed

_VERSION = 1
_AIR_HU = -1000.0
_NOISE_HU, _NOISE_MR = 18.0, 25.0
_BIAS = 0.15  # of the logarithm, for each term
_SMALLEST = 16  # voxels along an axis


class Phantom(NamedTuple):
    """A case, and what it is made of."""

    image: np.ndarray  # (C, Z, Y, X)
    label: np.ndarray  # (Z, Y, X)
    geometry: Geometry
    parts: Parts


def write_phantoms(
    root: Path,
    *,
    tasks: Sequence[int] = tuple(ANATOMIES),
    cases: int = 12,
    test_cases: int = 4,
    size: int = 32,
    seed: int = 0,
) -> list[Path]:
    """Write tasks into ``root`` and return their folders; what is there already stays.

    Args:
        root: is made if need be.
        tasks: numbers of the Decathlon's tasks.
        cases: training cases of each.
        test_cases: cases without labels.
        size: voxels along an axis, about; thick slices are fewer.
        seed: of all that is drawn.

    Raises:
        ImportError: nibabel is not installed.
        ValueError: an argument is out of range, or phantoms of other settings are there.
    """
    require_nibabel()
    problems = [f"tasks: {n}, must be of 1..10" for n in tasks if n not in ANATOMIES]
    problems += [f"cases: {cases}, must be at least 1"] * (cases < 1)
    problems += [f"test_cases: {test_cases}, must be at least 0"] * (test_cases < 0)
    problems += [f"size: {size}, must be at least {_SMALLEST}"] * (size < _SMALLEST)
    if problems:
        raise ValueError("; ".join(problems))
    root.mkdir(parents=True, exist_ok=True)
    folders = []
    for number in tasks:
        folder = root / f"Task{number:02d}_{ANATOMIES[number].name}Phantom"
        make_folder(folder, functools.partial(_write, number, cases, test_cases, size, seed))
        _check_settings(folder, _settings(cases, test_cases, size, seed))
        folders.append(folder)
    return folders


def draw_phantom(number: int, case: int, *, size: int = 32, seed: int = 0) -> Phantom:
    """Return a case of a task; all chance in it is of (seed, number, case).

    Args:
        number: of the task.
        case: number of the case; training cases come before test cases.
        size: voxels along an axis, about.
        seed: of all that is drawn.
    """
    anatomy = ANATOMIES[number]
    generator = np.random.default_rng(stream_seed(seed, "phantom", number, case))
    spacing = np.array(anatomy.spacing_mm)
    sides = size * generator.uniform(0.9, 1.1, 3) * spacing.min() / spacing
    shape = np.maximum(np.rint(sides).astype(int), _SMALLEST)
    zyx = [(np.arange(n) - n // 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    z, y, x = np.ix_(*zyx)
    parts = anatomy.parts(Draw(generator, shape / 2 * spacing, spacing))
    tissue = _paint((z, y, x), list(anatomy.tissues), parts)
    label = np.array([0, *(t.label for t in anatomy.tissues.values())])[tissue]
    image = _scanned(anatomy, tissue, generator)
    geometry = _geometry(anatomy, shape, generator)
    of_image, of_label = anatomy.stored
    return Phantom(_as_stored(image, of_image), label.astype(of_label), geometry, parts)


def _paint(grid: Grid, names: list[str], parts: Parts) -> np.ndarray:
    """Return the number of the tissue at each voxel, (Z, Y, X); 0 is air."""
    tissue = np.zeros(np.broadcast_shapes(*(axis.shape for axis in grid)), np.uint8)
    for name, shape in parts:
        tissue[shape.inside(grid)] = 1 + names.index(name)
    return tissue


def _scanned(anatomy: Anatomy, tissue: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return what a scanner would show of tissues, (C, Z, Y, X)."""
    is_ct = anatomy.modalities == ("CT",)
    air = np.full(len(anatomy.modalities), _AIR_HU if is_ct else 0.0)
    brightness = np.array([air, *(t.brightness for t in anatomy.tissues.values())])  # (T + 1, C)
    clean = np.moveaxis(brightness[tissue], -1, 0)
    noise = generator.standard_normal(clean.shape) * (_NOISE_HU if is_ct else _NOISE_MR)
    seen: np.ndarray = clean if is_ct else clean * _bias(tissue.shape, generator)
    shown: np.ndarray = seen + noise
    return shown if is_ct else np.abs(shown)  # MR shows magnitudes


def _bias(shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Return a smooth field about 1, the exponential of a polynomial of second degree."""
    axes = np.ix_(*(np.linspace(-1, 1, n) for n in shape))
    terms = [*axes, *(a * b for n, a in enumerate(axes) for b in axes[n:])]
    weights = generator.uniform(-_BIAS, _BIAS, len(terms))
    field: np.ndarray = np.exp(sum(w * term for w, term in zip(weights, terms, strict=True)))
    return field


def _as_stored(image: np.ndarray, kind: str) -> np.ndarray:
    if kind == "float32":
        return image.astype(np.float32)
    limits = np.iinfo(kind)
    shown = image / 4 if kind == "uint8" else image
    whole: np.ndarray = np.clip(np.rint(shown), limits.min, limits.max).astype(kind)
    return whole


def _geometry(anatomy: Anatomy, shape: np.ndarray, generator: np.random.Generator) -> Geometry:
    """Return a geometry in which an array (Z, Y, X) has the anatomy's spacing."""
    angle = np.deg2rad(anatomy.turned_degrees)
    turn = np.eye(3)  # about right to left
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.eye(4)
    affine[:3, 3] = generator.uniform(-100, 100, 3)
    sides = []
    for axis, towards in enumerate(anatomy.axes):
        world, backwards = divmod("RLAPSI".index(towards), 2)
        affine[:3, axis] = turn[:, world] * anatomy.spacing_mm[2 - world] * (1 - 2 * backwards)
        sides.append(int(shape[2 - world]))
    first, second, third = sides
    return Geometry((first, second, third), affine)


# ---------------------------------------------------------------------- files


def _settings(cases: int, test_cases: int, size: int, seed: int) -> str:
    return f"phantoms {_VERSION}: cases {cases}, test_cases {test_cases}, size {size}, seed {seed}"


def _check_settings(folder: Path, wanted: str) -> None:
    there = parsed(read_text(folder / "dataset.json")).get("release")
    if there != wanted:
        raise ValueError(
            f"root: {folder} holds {there!r}, and {wanted!r} was asked for; choose another root, "
            "or remove that folder"
        )


def _write(number: int, cases: int, test_cases: int, size: int, seed: int, folder: Path) -> None:
    anatomy = ANATOMIES[number]
    files = [f"{anatomy.name.lower()}_{case:03d}.nii.gz" for case in range(cases + test_cases)]
    for case, file in enumerate(files):
        phantom = draw_phantom(number, case, size=size, seed=seed)
        part = "Tr" if case < cases else "Ts"
        write_nifti(folder / f"images{part}/{file}", phantom.image, phantom.geometry)
        if case < cases:
            write_nifti(folder / f"labelsTr/{file}", phantom.label, phantom.geometry)
    write_dataset(
        folder,
        name=f"{anatomy.name}Phantom",
        modalities=anatomy.modalities,
        labels=anatomy.labels,
        training=files[:cases],
        test=files[cases:],
        description=f"Phantoms of {', '.join(anatomy.labels[1:])}: drawn, of no patient",
        reference="raykb/data/phantoms.py",
        licence="as raykb",
        release=_settings(cases, test_cases, size, seed),
    )
