"""Tasks in the layout of the Medical Segmentation Decathlon (Simpson et al., arXiv 1902.09063).

    Task04_Hippocampus/
        imagesTr/  labelsTr/  imagesTs/
        dataset.json
            modality    {"0": "MRI"}
            labels      {"0": "background", "1": "Anterior", "2": "Posterior"}
            training    [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}, …]
            test        ["./imagesTs/b.nii.gz", …]

Labels are read in both directions: number to name, and name to number as nnU-Net has them. Files
whose names begin with "." or "_" are passed over: the archives hold AppleDouble twins. A case is
named by its image's file. Files are in the task's folder, or linked to from there: a list that came
with data opens no others. How many cases and channels there are is what the lists and the files
say, not what ``numTraining`` and ``tensorImageSize`` do.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from raykb.config import ConfigError, Problems
from raykb.data.nifti import Geometry, Volume, read_image, read_label
from raykb.engine.foreign import parsed, read_text
from raykb.engine.names import LONGEST, check_part

TOLERANCES_MM = {
    "Task01_BrainTumour": 5.0,
    "Task02_Heart": 4.0,
    "Task03_Liver": 7.0,
    "Task04_Hippocampus": 1.0,
    "Task05_Prostate": 4.0,
    "Task06_Lung": 2.0,
    "Task07_Pancreas": 5.0,
    "Task08_HepaticVessel": 3.0,
    "Task09_Spleen": 3.0,
    "Task10_Colon": 4.0,
}
"""Of the challenge's surface Dice, by folder of the task."""

_SUFFIXES = (".nii.gz", ".nii")
_SHOWN = 10  # numbers in a message


class Case(NamedTuple):
    """The files of one patient."""

    name: str  # of the image, without its suffix
    image: Path
    label: Path | None = None  # of a test case there is none


@dataclass(frozen=True)
class DecathlonTask:
    """What ``dataset.json`` says.

    Attributes:
        name: of the task.
        folder: of ``dataset.json``.
        modalities: names of the channels.
        labels: names by number; 0 is the background.
        training: cases with labels, by name.
        test: cases without, by name.
    """

    name: str
    folder: Path
    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    training: tuple[Case, ...]
    test: tuple[Case, ...]


def task_folders(root: Path) -> list[Path]:
    """Return the folders in ``root`` that have a ``dataset.json``, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(path.parent for path in root.glob("*/dataset.json") if _is_shown(path.parent))
    if not found:
        raise FileNotFoundError(
            f"{root}: must hold folders of tasks, Task04_Hippocampus or the like, each with a "
            "dataset.json; unpack the Decathlon there, or have phantoms written"
            + f"; it is a task itself: name {root.parent}"
            * (root / "dataset.json").is_file()
        )
    return found


def read_task(folder: Path) -> DecathlonTask:
    """Return what the ``dataset.json`` of a folder says; the files that it lists are not looked at.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it is not of this layout; all that is wrong is told at once.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; the folder of a task must have one")
    problems = Problems()
    said: dict[str, Any] = {}
    with problems.at():
        said = _mapping(parsed(read_text(path, encoding="utf-8-sig")), "all of it")
    problems.refuse(str(path))
    name = folder.name
    modalities: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    training: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    with problems.at():
        name = check_part(str(said.get("name") or name), "name")
    with problems.at("modality"):
        modalities = _by_number(said.get("modality"))
    with problems.at("labels"):
        labels = _by_number(said.get("labels"))
        if len(labels) < 2:
            raise ValueError(f"{list(labels)}, must name the background and at least one more")
    with problems.at("training"):
        training = _cases(folder, said.get("training"), labelled=True)
        if not training:
            raise ValueError("no case is listed, there must be at least one")
    with problems.at("test"):
        test = _cases(folder, said.get("test", []), labelled=False)
    problems.refuse(str(path))
    return DecathlonTask(name, folder, modalities, labels, training, test)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {type(value).__name__}, must be a mapping")
    return value


def _by_number(said: Any) -> tuple[str, ...]:
    """Return names in the order of their numbers, which stand on either side."""
    table = _mapping(said, "it")
    numbered = all(str(key).isdecimal() for key in table)
    pairs = table.items() if numbered else ((number, name) for name, number in table.items())
    names: dict[int, str] = {}
    for number, name in pairs:
        if not str(number).isdecimal() or int(number) in names:
            raise ValueError(f"{table}, must give each name a number of its own")
        names[int(number)] = _named(str(name))
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{table}, must be numbered 0, 1, … without a gap")
    return tuple(names[number] for number in range(len(names)))


def _cases(folder: Path, said: Any, *, labelled: bool) -> tuple[Case, ...]:
    """Return the cases of a list, by name."""
    cases: dict[str, Case] = {}
    problems = []
    for number, entry in enumerate(said if isinstance(said, list) else [said]):
        pair = isinstance(entry, dict)
        files = [entry.get(key) for key in ("image", "label")] if pair else [entry]
        if pair != labelled or not all(isinstance(file, str) for file in files):
            wanted = '{"image": file, "label": file}' if labelled else "the name of a file"
            problems.append(f"{number}: {entry!r}, must be {wanted}")
            continue
        try:
            paths = [_path(folder, file) for file in files]
            name = _named(_stem(paths[0]))
        except ValueError as error:
            problems.append(f"{number}: {error}")
            continue
        if not all(map(_is_shown, paths)):
            continue
        if name in cases:
            problems.append(f"{number}: case {name} is listed twice, must have a name of its own")
        cases[name] = Case(name, *paths)
    if problems:
        raise ConfigError("cases", problems)
    return tuple(cases[name] for name in sorted(cases))


def _path(folder: Path, file: str) -> Path:
    """Return the path of a file that was perhaps written down on another system.

    Windows has other slashes; macOS another form of letters with marks, which archives keep. A list
    that came with data names files of these data: others are linked to from within the folder.
    """
    inside = PurePosixPath(file.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or "\0" in file:
        raise ValueError(
            f"{file!r}, must be a file in the folder of dataset.json; to use one that lies "
            "elsewhere, link to it from there"
        )
    path = folder / inside
    forms = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return path if path.exists() else next((form for form in forms if form.exists()), path)


def _named(name: str) -> str:
    """Return a name that files and tables may have; raises ValueError for another."""
    if not name.isprintable() or len(name.encode()) > LONGEST:
        raise ValueError(
            f"{name[:LONGEST]!a}, must be a name of signs that print and of at most {LONGEST} bytes"
        )
    return name


def _is_shown(path: Path) -> bool:
    return path.name[:1] not in ("", ".", "_")


def _stem(path: Path) -> str:
    lower = path.name.lower()
    return next((path.name[: -len(s)] for s in _SUFFIXES if lower.endswith(s)), path.stem)


def write_dataset(
    folder: Path,
    *,
    name: str,
    modalities: Sequence[str],
    labels: Sequence[str],
    training: Sequence[str],
    test: Sequence[str],
    **about: str,
) -> None:
    """Write the ``dataset.json`` of a task.

    Args:
        folder: of the task.
        name: of the task.
        modalities: names of the channels.
        labels: names by number, the background first.
        training: names of files, each in ``imagesTr`` and ``labelsTr``.
        test: names of files in ``imagesTs``.
        about: what else is said: ``description``, ``reference``, ``licence``, ``release``.
    """
    said = {
        "name": name,
        **about,
        "tensorImageSize": "4D" if len(modalities) > 1 else "3D",
        "modality": {str(n): modality for n, modality in enumerate(modalities)},
        "labels": {str(n): label for n, label in enumerate(labels)},
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in training],
        "test": [f"./imagesTs/{n}" for n in test],
    }
    text = json.dumps(said, indent=1, ensure_ascii=False)
    (folder / "dataset.json").write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------- one case


class CaseData(NamedTuple):
    """What the files of a case hold, checked against the task and each other."""

    image: np.ndarray  # (C, Z, Y, X)
    label: np.ndarray | None  # (Z, Y, X), of label_type
    geometry: Geometry


def read_case(task: DecathlonTask, case: Case) -> CaseData:
    """Return a case.

    Raises:
        ImportError: nibabel is not installed.
        ConfigError: files are missing, truncated, or of another shape or place than each other, or
            a label is not in the task's table; all that is wrong with the case is told at once.
    """
    problems = Problems()
    image: Volume | None = None
    label: Volume | None = None
    with problems.at("image"):
        image = read_image(case.image)
        channels = len(image.array)
        if channels != len(task.modalities):
            raise ValueError(
                f"{case.image}: has {channels} channels, must have {len(task.modalities)}: "
                f"{', '.join(task.modalities)}"
            )
    with problems.at("label"):
        label = None if case.label is None else read_label(case.label)
    if label is not None:
        with problems.at("label"):
            _check_known(label.array, task.labels)
    if image is not None and label is not None:
        apart = image.geometry.differences(label.geometry)
        problems.add(*(f"label: has {what}; must lie where the image does" for what in apart))
    problems.refuse(f"case {case.name}")
    if image is None:  # not without a problem
        raise RuntimeError(f"case {case.name}: no image")
    known = None if label is None else label.array.astype(label_type(len(task.labels)))
    return CaseData(image.array, known, image.geometry)


def label_type(labels: int) -> np.dtype:
    """Return the type that so many labels are kept in."""
    return np.dtype(np.uint8 if labels <= 256 else np.int16)


def _check_known(label: np.ndarray, names: Sequence[str]) -> None:
    if label.min() >= 0 and label.max() < len(names):
        return
    values, counts = np.unique(label, return_counts=True)  # sorts: dear where there are many voxels
    strange = {
        int(value): int(count)
        for value, count in zip(values, counts, strict=True)
        if not 0 <= value < len(names)
    }
    if strange:
        raise ValueError(f"{_told(strange)}; the task's table has 0..{len(names) - 1}")


def _told(strange: Mapping[int, int]) -> str:
    told = [f"{value} in {count} voxels" for value, count in list(strange.items())[:_SHOWN]]
    return f"has the unknown {', '.join(told)}{', …' * (len(strange) > _SHOWN)}"
