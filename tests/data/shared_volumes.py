"""Small tasks in the Decathlon's layout, whose voxels say where they are."""

import json

import nibabel
import numpy as np

from raykb.data.nifti import Geometry, write_nifti

AFFINE = np.array([[-0.8, 0, 0, 12], [0, 0.8, 0, -7], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])  # LAS
SHAPE = (9, 11, 13)  # Z, Y, X


def geometry(shape=SHAPE, affine=AFFINE):
    z, y, x = shape
    return Geometry((x, y, z), affine)


def numbered(shape=SHAPE, first=0):
    """Each voxel's number in C order."""
    return first + np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def labels(shape=SHAPE, classes=3):
    """A few voxels of each label, and background."""
    label = np.zeros(shape, np.uint8)
    flat = label.reshape(-1)
    for value in range(1, classes):
        flat[np.array([17, 29, 101]) * value % flat.size] = value
    return label


def save(path, data, affine=AFFINE, slope=None, inter=0.0):
    """Save numbers as they are, (X, Y, Z) or (X, Y, Z, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return path


def write_task(folder, *, cases=3, tests=1, channels=1, shapes=None, **changes):
    """Write a task of ``cases``, and return its folder; ``changes`` are made to dataset.json."""
    names = [f"case_{number}" for number in range(cases + tests)]
    said = {
        "name": "Small",
        "modality": {str(n): f"MR{n}" for n in range(channels)},
        "labels": {"0": "background", "1": "organ", "2": "lesion"},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names[:cases]
        ],
        "test": [f"./imagesTs/{name}.nii.gz" for name in names[cases:]],
    }
    for number, name in enumerate(names):
        shape = SHAPE if shapes is None else shapes[number]
        image = np.stack([numbered(shape, 1000 * channel) for channel in range(channels)])
        part = "Tr" if number < cases else "Ts"
        write_nifti(folder / f"images{part}/{name}.nii.gz", image, geometry(shape))
        if number < cases:
            write_nifti(folder / f"labelsTr/{name}.nii.gz", labels(shape), geometry(shape))
    (folder / "dataset.json").write_text(json.dumps(said | changes))
    return folder
