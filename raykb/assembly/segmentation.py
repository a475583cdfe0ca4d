"""Labelled volumes of a task in the Decathlon's layout: what segmentation learns from.

    files ─▶ fingerprint ─▶ plan ─▶ limits ─▶ cases prepared once ─▶ folds ─▶ patches, whole cases

A prepared case is cropped to what is not zero, normalised, transposed and resampled as the plan
says, and kept in a shard under the plan's hash: another plan makes others and leaves these.
"""

import functools
import hashlib
import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raykb.assembly.builder import Config, Data, Models
from raykb.config import Problems, build
from raykb.data.decathlon import DecathlonTask, read_case, read_task, task_folders
from raykb.data.feed import InPlace
from raykb.data.folds import Fold, folds
from raykb.data.nifti import require_nibabel
from raykb.data.order import Endless
from raykb.data.phantom_anatomy import ANATOMIES
from raykb.data.phantoms import write_phantoms
from raykb.data.source import Source
from raykb.data.volume_augmentations import PATCH_AUGMENTATIONS
from raykb.data.volume_shards import Contents, Preparation
from raykb.data.volume_views import PatchView
from raykb.data.volumes import Volumes, open_volumes
from raykb.engine.arguments import above, at_least, check_settings, misfits, refuse
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import stream_seed
from raykb.evaluate.sliding_window import SlidingWindow
from raykb.later import Later
from raykb.segmentation.fingerprint import (
    Box,
    Case,
    Fingerprint,
    Intensities,
    fingerprint,
    nonzero_box,
)
from raykb.segmentation.normalisation import normalise
from raykb.segmentation.plans import Configuration, Plan
from raykb.segmentation.settings import FULL, PlanSettings

evaluation, resampling = Later("raykb.evaluate.segmentation"), Later("raykb.data.resampling")
evaluated_slices = Later("raykb.evaluate.slices")
MEDICAL = ("monai", "nibabel")


def check_packages(problems: Problems) -> None:
    """Find what is not installed but imported late: it would be missed after a training."""
    if missing := [name for name in MEDICAL if importlib.util.find_spec(name) is None]:
        problems.add(f"{' and '.join(missing)}: not installed; run: pip install 'raykb[medical]'")


# ---------------------------------------------------------------------- plan


def planned(own: Configuration, models: Models, config: Config) -> dict[str, Any]:
    """Return a config with what the plan decides in it: batch size, kind of Dice, and network.

    Of the network these are the arguments that bear the names of the plan, if it has such.
    """
    takes = inspect.signature(models[config["model"]["name"]]).parameters
    network = {name: value for name, value in own.network.items() if name in takes}
    return dict(config) | {
        "recipe": {**config["recipe"], "batch_size": own.batch_size},
        "method": {**config["method"], "batch_dice": own.batch_dice},
        "model": {**config["model"], **json.loads(json.dumps(network))},  # as a file would say it
    }


def stand_in(settings: PlanSettings, *, channels: int, labels: int) -> tuple[Data, Configuration]:
    """Return what a rehearsal has to know of a task, and a plan of cases that are cubes.

    Raises:
        ValueError: as :meth:`PlanSettings.plan`.
    """
    cube = Fingerprint(
        shapes=((64, 64, 64),),
        spacings_mm=((1.0, 1.0, 1.0),),
        modalities=("MR",) * channels,
        intensities=(Intensities(0.0, 1.0, 2.0, 1.0, 1.0),) * channels,
        labels=labels,
        relative_size=1.0,
    )
    data = Data(samples=1, classes=labels, channels=channels)
    return data, settings.plan(cube).configuration(FULL)


# ---------------------------------------------------------------------- cases


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How cases are held out; a section of the config.

    Args:
        splits: folds of the cross-validation.
        run: numbers of those that are trained, from 0; null for all.
        seed: of the draw; 12345 is nnU-Net's.
    """

    splits: int = 5
    run: tuple[int, ...] | None = None
    seed: int = 12345

    def __post_init__(self) -> None:
        problems = misfits(self, splits=at_least(2))
        if strange := [fold for fold in self.run or () if not 0 <= fold < self.splits]:
            problems.append(f"run: {strange[0]}, must be in 0..{self.splits - 1}")
        refuse(problems)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Those that are trained."""
        return tuple(range(self.splits)) if self.run is None else self.run

    def held_out(self, cases: int) -> int:
        """Return how many of so many cases are held out by some fold that is trained."""
        return sum(len(range(fold, cases, self.splits)) for fold in set(self.numbers))


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedTask:
    """A task whose cases lie in shards as its plan wants them; it is pickled without their voxels.

    Attributes:
        source: its files.
        fingerprint: of all its training cases.
        files: stands for the files that this was made of.
        plan: within the limits of the config.
        volumes: all training cases.
    """

    source: DecathlonTask
    fingerprint: Fingerprint
    files: str
    plan: Plan
    volumes: Volumes

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.source.folder.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Names by number; 0 is the background."""
        return self.source.labels

    @property
    def configuration(self) -> Configuration:
        """What is trained."""
        return self.plan.configuration(FULL)

    @property
    def key(self) -> str:
        """Stands for all that trainings depend on beside their config: files and plan."""
        return hashlib.sha256(f"{self.files} {self.plan.hash}".encode()).hexdigest()[:8]

    def record(self) -> str:
        """Return what :func:`prepared` goes on from, as JSON."""
        return json.dumps({"files": self.files, "fingerprint": self.fingerprint.to_json()})

    def split(self, settings: Folds, fold: int) -> tuple[Volumes, Volumes]:
        """Return the cases to train on in a fold, and those held out.

        Raises:
            ValueError: there are fewer cases than folds.
        """
        rows = {case.name: row for row, case in enumerate(self.volumes.cases)}
        parts: Fold = folds(rows, splits=settings.splits, seed=settings.seed)[fold]
        training, held_out = (np.array([rows[name] for name in names]) for names in parts)
        return self.volumes.subset(training), self.volumes.subset(held_out)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Which tasks there are; a section of the config.

    Args:
        root: folder of tasks in the Decathlon's layout, which all nodes see; null has phantoms
            written into the run directory.
        tasks: their numbers, as 4 of Task04_Hippocampus; null for all that there are.
        cases: of each phantom task.
        test_cases: of the same without labels, which predictions are made of.
        size: voxels of a phantom along an axis, about.
        shards: folder for prepared cases, which all nodes see; null for the run directory's.
        tolerance_mm: of the surface Dice, for tasks that the challenge has no tolerance for.
    """

    root: str | None = None
    tasks: tuple[int, ...] | None = None
    cases: int = 12
    test_cases: int = 0
    size: int = 24
    shards: str | None = None
    tolerance_mm: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "cases": at_least(2),
            "test_cases": at_least(0),
            "size": at_least(16),
            "tolerance_mm": above(0),
        }
        check_settings(self, **rules)

    def count(self) -> int:
        """Return how many tasks there are; raises as :func:`opened`, or ValueError for phantoms."""
        if self.root is not None:
            return len(opened(Path(self.root), self.tasks))
        if strange := [number for number in self._phantoms if number not in ANATOMIES]:
            raise ValueError(f"tasks: {strange[0]}, must be of 1..10, as phantoms are")
        return len(self._phantoms)

    def sizes(self) -> list[tuple[int, int]]:
        """Return how many cases with and without labels each task has; raises as :meth:`count`."""
        if self.root is None:
            return [(self.cases, self.test_cases)] * self.count()
        return [(len(t.training), len(t.test)) for t in opened(Path(self.root), self.tasks)]

    def open(self, files: Path) -> list[DecathlonTask]:
        """Return the tasks; phantoms are written below ``files``, if they are not there.

        Raises:
            ImportError: nibabel is not installed.
        """
        require_nibabel()
        if self.root is not None:
            return opened(Path(self.root), self.tasks)
        root = files / "phantoms"
        write_phantoms(
            root,
            tasks=self._phantoms,
            cases=self.cases,
            test_cases=self.test_cases,
            size=self.size,
        )
        return opened(root, self._phantoms)

    def shards_of(self, task: DecathlonTask, files: Path) -> Path:
        """Return the folder for a task's prepared cases, below ``files`` if no other is named."""
        return Path(self.shards or files / "shards") / task.folder.name

    @property
    def _phantoms(self) -> tuple[int, ...]:
        return tuple(ANATOMIES) if self.tasks is None else self.tasks


def opened(root: Path, numbers: Sequence[int] | None = None) -> list[DecathlonTask]:
    """Return the tasks in a folder, by name; of these numbers alone, as 4 of Task04_Hippocampus.

    Raises:
        FileNotFoundError: there is no task.
        ConfigError: one is not in the Decathlon's layout.
        ValueError: there is none of some number.
    """
    folders = task_folders(root)
    if numbers is None:
        return [read_task(folder) for folder in folders]
    found = {n: [f for f in folders if f.name.startswith(f"Task{n:02d}_")] for n in numbers}
    if missing := [number for number, own in found.items() if len(own) != 1]:
        raise ValueError(
            f"tasks: {missing[0]}, must be of one folder in {root}, which has "
            f"{', '.join(folder.name for folder in folders)}"
        )
    return [read_task(folder) for own in found.values() for folder in own]


def prepared(
    task: DecathlonTask,
    settings: PlanSettings,
    shards: Path,
    record: str | None = None,
    workers: int = 1,
) -> PreparedTask:
    """Return a task with all of its training cases prepared; what is there is not done again.

    Args:
        task: as :func:`opened` returns it.
        settings: of the plan.
        shards: the folder of shards, which all who read them can see.
        record: of an earlier :class:`PreparedTask`, whose fingerprint holds while files do.
        workers: threads.

    Raises:
        ConfigError: cases cannot be used; all that is wrong with any of them is told.
        ValueError: there is no foreground, or no plan fits into the memory.
    """
    files, before = _state(task), json.loads(record or "{}")
    if before.get("files") == files:
        found = Fingerprint.from_json(before["fingerprint"])
    else:
        found = _fingerprint(task)
    own = settings.plan(found)
    volumes = open_volumes(task, shards, preparation=preparation(own), workers=workers)
    return PreparedTask(source=task, fingerprint=found, files=files, plan=own, volumes=volumes)


def preparation(own: Plan) -> Preparation:
    """Return what is done to the cases of a plan; its hash stands for that."""
    return Preparation(prepare=functools.partial(prepared_case, own), key=f"{own.hash} {FULL}")


class Grid(NamedTuple):
    """Where what a plan makes of a case lies in it."""

    box: Box  # of the case's array
    shape: tuple[int, ...]  # of the box, axes as the plan has them
    spacing_mm: tuple[float, ...]  # the same
    thick: int | None  # axis of slices that are no neighbours, the same

    @classmethod
    def of(cls, own: Plan, contents: Contents) -> "Grid":
        """Return that of a case as its files have it."""
        box = nonzero_box(contents.image)
        sides = [axis.stop - axis.start for axis in box]
        spacing = tuple(contents.spacing_mm[axis] for axis in own.transpose)
        thick = resampling.thick_axis(spacing, own.configuration(FULL).spacing_mm)
        return cls(box, tuple(sides[axis] for axis in own.transpose), spacing, thick)


def prepared_case(own: Plan, contents: Contents) -> Contents:
    """Return a case cropped, normalised, transposed and resampled, axes as the plan has them."""
    grid, target = Grid.of(own, contents), own.configuration(FULL).spacing_mm
    z, y, x = grid.box
    image = normalise(contents.image[:, z, y, x], own.normalisation)
    image = image.transpose(0, *(1 + axis for axis in own.transpose))
    shape = resampling.resampled_shape(grid.shape, grid.spacing_mm, target)
    label = None
    if contents.label is not None:
        label = contents.label[grid.box].transpose(own.transpose)
        label = resampling.resample_label(label, shape, thick=grid.thick)
    image = resampling.resample_image(image, shape, thick=grid.thick)
    return Contents(image, label, (target[0], target[1], target[2]))


def _fingerprint(task: DecathlonTask) -> Fingerprint:
    """Return the fingerprint of the training cases, all of which must be good."""
    problems = Problems()

    def cases() -> Iterator[Case]:  # one in memory at a time
        for case in task.training:
            with problems.at(case.name):
                image, label, geometry = read_case(task, case)
                if label is not None:  # a training case has one
                    yield image, label, geometry.spacing_mm

    with problems.at():
        found = fingerprint(cases(), modalities=task.modalities, labels=len(task.labels))
    problems.refuse(f"{task.folder}: the training cases cannot be used")
    return found


def _state(task: DecathlonTask) -> str:
    """Return what stands for the files of all training cases, and for the task's tables."""
    paths = [path for case in task.training for path in case[1:] if path and path.is_file()]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    content = [len(task.training), files, task.modalities, task.labels]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- what a training reads


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How patches are drawn, and how volumes are segmented whole; a section of the config.

    Args:
        foreground_share: of patches that have a voxel of a label in their middle.
        step: from one tile to the next, as a share of the patch.
        tiles: of one forward pass.
    """

    foreground_share: float = 0.33
    step: float = 0.5
    tiles: int = 1

    def window(self, own: Configuration) -> SlidingWindow:
        """Return how volumes go through a network that was trained as a plan has it."""
        return SlidingWindow(tile=own.patch_size, step=self.step, batch_size=self.tiles)


def segmentation_data(
    *,
    config: Config,
    seed: int,
    task: PreparedTask,
    fold: int,
    tolerance_mm: float | None = None,
    components: bool = False,
    picture: bool = False,
) -> Data:
    """Return patches of the cases of a fold without an end, and the held-out cases to evaluate.

    Args:
        config: the sections ``recipe``, ``patches``, ``augmentation`` and ``folds``.
        seed: of order, patches and what they are augmented by.
        task: whose cases they are; its plan says how large a patch is.
        fold: number of it.
        tolerance_mm: of the surface Dice of whole cases; None for Dice alone.
        components: keep what the largest pieces are worth among the details, under that name.
        picture: keep a slice of a case among the details, under ``slice``.
    """
    recipe, patches = build(Recipe, config["recipe"]), build(Patches, config["patches"])
    training, held_out = task.split(build(Folds, config["folds"]), fold)
    own, (z, y, x) = stream_seed(seed, "patches"), task.configuration.patch_size
    of_patch = {"size": (z, y, x), "spacing_mm": task.configuration.spacing_mm}
    augmentation = build(PATCH_AUGMENTATIONS, config["augmentation"], **of_patch)
    view = PatchView(training, (z, y, x), patches.foreground_share, augmentation=augmentation)
    order = Endless(len(training), recipe.batch_size, own)
    window = patches.window(task.configuration)
    whole = evaluation.Segmentation(
        held_out.cases, training.classes, window, tolerance_mm, components
    )
    pictures = {"slice": evaluated_slices.LabelledSlice(held_out.cases, window)} if picture else {}
    return Data(
        feed=InPlace(Source(training, order, view, own)),
        samples=len(training),
        classes=len(training.classes),
        channels=training.channels,
        evaluations={"": whole} | pictures,
    )
