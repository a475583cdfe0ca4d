"""Colin27 with its AAL regions as a task in the Decathlon's layout: one brain, a hemisphere a case.

    image   ch2.nii.gz    T1 of one man, the mean of 27 scans: Holmes et al., "Enhancement of MR
                          images using registration for signal averaging", Journal of Computer
                          Assisted Tomography 22(2), 1998
    label   aal.nii.gz    116 regions, drawn on that brain: Tzourio-Mazoyer et al., "Automated
                          anatomical labeling of activations in SPM", NeuroImage 15(1), 2002
    table   aal.nii.txt   number, name and code of each region; the first digit of the code is the
                          part of the brain, and is what is kept of it here

All three are in Debian's package ``mricron-data``. The plane between the hemispheres is in neither
case. Two halves of one head are no two patients: what a network is worth on the half that it has
not seen says that reading, training and inference are right, and nothing of people.
"""

import functools
from pathlib import Path

import numpy as np

from raykb.data.atomic import make_folder
from raykb.data.decathlon import write_dataset
from raykb.data.nifti import Geometry, Volume, read_image, read_label, require_nibabel, write_nifti
from raykb.data.resampling import resample_image, resample_label

PARTS = {  # of the brain, by the first digit of AAL's codes: 2001 is Precentral_L
    "2": "frontal lobe",
    "3": "insula",
    "4": "limbic lobe",
    "5": "occipital lobe",
    "6": "parietal lobe",
    "7": "subcortical grey matter",
    "8": "temporal lobe",
    "9": "cerebellum",
}
_COARSEST_MM = 8
_FILES = ("ch2.nii.gz", "aal.nii.gz", "aal.nii.txt")


def colin27(
    output: Path, *, spacing_mm: int = 1, templates: str = "/usr/share/mricron/templates"
) -> Path:
    """Colin27, T1 of one adult brain, in parts of AAL: two hemispheres, of Debian's mricron-data.

    A task in the Decathlon's layout with the left and the right hemisphere as cases and eight
    labels. One brain is a correctness check, never a clinical figure.

    Args:
        output: folder of tasks, which gets ``Task27_Colin27``; what is there already stays.
        spacing_mm: between voxels; 1 is the files' own, with 2 a training sees more in less time.
        templates: folder of MRIcron's files.

    Returns:
        The folder of the task.

    Raises:
        ImportError: nibabel is not installed.
        FileNotFoundError: MRIcron's files are not there.
        ValueError: they are not what they were: of other places, axes or regions.
    """
    require_nibabel()
    if not 1 <= spacing_mm <= _COARSEST_MM:
        raise ValueError(f"spacing_mm: {spacing_mm}, must be in 1..{_COARSEST_MM}")
    image, atlas, table = (Path(templates) / file for file in _FILES)
    if missing := [path.name for path in (image, atlas, table) if not path.is_file()]:
        raise FileNotFoundError(
            f"templates: {templates} has no {', '.join(missing)}, must be the folder of MRIcron's "
            "files; run: apt-get install mricron-data"
        )
    head, regions = read_image(image), read_label(atlas)
    _check(head.geometry, regions.geometry)
    label = part_of_region(table.read_text(encoding="utf-8"), int(regions.array.max()))
    parts = Volume(label[regions.array], head.geometry)
    folder = output / "Task27_Colin27"
    output.mkdir(parents=True, exist_ok=True)
    make_folder(folder, functools.partial(_write, head, parts, spacing_mm))
    return folder


def part_of_region(table: str, most: int) -> np.ndarray:
    """Return the label of each region, (1 + most,) uint8, by its number; 0 is the background.

    Args:
        table: lines of a region's number, name and code.
        most: the greatest number that is needed.

    Raises:
        ValueError: a region is not in the table, or its code begins with no digit that is known.
    """
    rows = [line.split() for line in table.splitlines() if line.strip()]
    codes = {int(number): code for number, _, code in rows}
    wanted = range(1, most + 1)
    if strange := [n for n in wanted if codes.get(n, "0")[0] not in PARTS]:
        raise ValueError(
            f"regions {strange[:10]}: must be in the table, each with a code whose first digit is "
            f"of {', '.join(PARTS)}; run: apt-get install --reinstall mricron-data"
        )
    digits = list(PARTS)
    return np.array([0, *(1 + digits.index(codes[n][0]) for n in wanted)], np.uint8)


def hemispheres(of: Volume) -> dict[str, Volume]:
    """Return the halves of a volume by name, without the plane between them.

    Args:
        of: whose file has its axes towards right, anterior and superior, x being 0 mm between the
            hemispheres.
    """
    along_x, start_mm = of.geometry.affine[0, [0, 3]]
    x_mm = start_mm + along_x * np.arange(of.array.shape[-1])
    sides = {"left": np.flatnonzero(x_mm < 0), "right": np.flatnonzero(x_mm > 0)}
    return {name: _columns(of, int(found[0]), len(found)) for name, found in sides.items()}


def _columns(of: Volume, first: int, count: int) -> Volume:
    """Return some of a volume along its last axis, at the place where they are."""
    affine = of.geometry.affine.copy()
    affine[:3, 3] += first * affine[:3, 0]
    _, y, z = of.geometry.file_shape
    return Volume(of.array[..., first : first + count], Geometry((count, y, z), affine))


def _joined(of: Volume, voxels: int) -> Volume:
    """Return a volume of whose voxels so many are one along each axis; what is left over is cut."""
    if voxels == 1:
        return of
    z, y, x = (length // voxels for length in of.geometry.shape)
    array = of.array[..., : z * voxels, : y * voxels, : x * voxels]
    resample = resample_image if array.ndim == 4 else resample_label
    affine = of.geometry.affine.copy()
    affine[:3, 3] += affine[:3, :3].sum(1) * (voxels - 1) / 2  # to the middle of the first ones
    affine[:3, :3] *= voxels
    joined = resample(array, (z, y, x))
    return Volume(joined.astype(array.dtype), Geometry((x, y, z), affine))


def _check(head: Geometry, regions: Geometry) -> None:
    apart = head.differences(regions)
    problems = [f"aal.nii.gz has {what}; must lie where the head does" for what in apart]
    if head.orientation != "RAS" or np.count_nonzero(head.affine[0, :3]) > 1:
        problems.append(
            f"ch2.nii.gz has axes towards {head.orientation}, must be straight and towards RAS"
        )
    if problems:
        raise ValueError("; ".join(problems))


def _write(head: Volume, parts: Volume, spacing_mm: int, folder: Path) -> None:
    images, labels = hemispheres(head), hemispheres(parts)
    for side in images:
        write_nifti(folder / f"imagesTr/{side}.nii.gz", *_joined(images[side], spacing_mm))
        write_nifti(folder / f"labelsTr/{side}.nii.gz", *_joined(labels[side], spacing_mm))
    write_dataset(
        folder,
        name="Colin27",
        modalities=["MRI T1"],
        labels=["background", *PARTS.values()],
        training=[f"{side}.nii.gz" for side in images],
        test=[],
        description="One adult brain in parts of AAL; a correctness check, of no clinical meaning",
        reference="Holmes et al. 1998; Tzourio-Mazoyer et al. 2002; Debian's mricron-data",
        licence="as mricron-data",
        release="raykb/data/colin27.py",
    )
