"""A case from its file through trained networks, and back to its file's own grid.

    file ─▶ prepared ─▶ networks ─▶ mean of probabilities ─▶ file's grid ─▶ labels ─▶ pieces ─▶ file

Probabilities are resampled, linearly, and a voxel has the label of the highest (nnU-Net); what lies
outside the box of what is not zero is background.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raykb.assembly.builder import Config, Data, Models, network_of
from raykb.assembly.segmentation import Folds, Grid, Patches, PreparedTask, prepared_case
from raykb.config import build
from raykb.data.decathlon import Case, label_type, read_case
from raykb.data.nifti import write_nifti
from raykb.data.volume_shards import Contents
from raykb.engine.names import check_part
from raykb.evaluate.components import Kept
from raykb.later import Later
from raykb.segmentation.plans import Plan

ensemble, resampling = Later("raykb.evaluate.ensemble"), Later("raykb.data.resampling")
PLAIN = Kept()


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What is segmented after the trainings, and written as files; a section of the config.

    Args:
        test: the cases without labels, each by all trainings of a method.
        validation: the cases with labels, each by the trainings that did not see it.
    """

    test: bool = True
    validation: bool = False

    def cases(self, task: PreparedTask, folds: Folds) -> Iterator[tuple[str, Case, Sequence[int]]]:
        """Yield the cases of a task, each with its folder and the folds that segment it."""
        if self.test:
            yield from (("", case, folds.numbers) for case in task.source.test)
        if self.validation:
            named = {case.name: case for case in task.source.training}
            for fold in folds.numbers:
                _, held_out = task.split(folds, fold)
                yield from (("validation/", named[case.name], [fold]) for case in held_out.cases)


def unfit(task: PreparedTask, case: Case) -> list[str]:
    """Return why the segmentation of a case could not be written after the trainings."""
    try:
        check_part(case.name, f"predictions: {task.name}, case")
    except ValueError as error:
        return [str(error)]
    remedy = "put it there, or give --set predictions.test=false"
    return [] if case.image.is_file() else [f"predictions: {case.image} is missing; {remedy}"]


def predicted(
    task: PreparedTask,
    case: Case,
    config: Config,
    models: Models,
    weights: Sequence[Callable[[], Mapping[str, Any]]],
    *,
    kept: Kept = PLAIN,
    device: str = "cpu",
    threads: int = 1,
) -> bytes:
    """Return the segmentation of a case by several trainings of a method, as a file ``.nii.gz``.

    Args:
        task: what the trainings learnt from.
        case: its image is read; a label is not.
        config: the sections ``model`` and ``patches`` of the trainings.
        models: the table that ``model`` is a row of.
        weights: return the state dict of each training's network.
        kept: of what the largest piece alone stays.
        device: of the networks.
        threads: of torch.

    Raises:
        ValueError: there are no weights: no training ended well.
        ConfigError: the case cannot be used.
        RuntimeError: weights are not of this network.
    """
    if not weights:
        raise ValueError("weights: none, for no training of the method ended well; see its holes")
    torch.set_num_threads(threads)
    image, _, geometry = read_case(task.source, case._replace(label=None))
    contents, own, classes = Contents(image, None, geometry.spacing_mm), task.plan, task.labels
    prepared = torch.from_numpy(prepared_case(own, contents).image)
    window = build(Patches, config["patches"]).window(task.configuration)
    networks = _networks(task, config, models, weights)
    probabilities = ensemble.mean_probabilities(networks, prepared, window, torch.device(device))
    labels = label_map(own, contents, probabilities.cpu().numpy())
    labels = kept.of(labels, classes).astype(label_type(len(classes)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.nii.gz"
        write_nifti(file, labels, geometry)
        return file.read_bytes()


def prediction_key(case: Case, trainings: Sequence[str], kept: Kept) -> str:
    """Return what stands for all that :func:`predicted` makes a file of.

    Args:
        case: whose image is looked at, but for its voxels.
        trainings: their names, which bear hashes of files and plan.
        kept: as there.
    """
    state = case.image.stat() if case.image.is_file() else None
    file = None if state is None else (state.st_size, state.st_mtime_ns)
    content = json.dumps([file, list(trainings), kept])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def label_map(own: Plan, contents: Contents, probabilities: np.ndarray) -> np.ndarray:
    """Return the labels (Z, Y, X) of a case as its file has it.

    Args:
        own: the plan that the case was prepared by.
        contents: the case before that.
        probabilities: (K, …) of it afterwards.
    """
    grid, labels = Grid.of(own, contents), np.zeros(contents.image.shape[1:], np.int64)
    full = resampling.resample_image(probabilities, grid.shape, thick=grid.thick, order=1)
    labels[grid.box] = full.argmax(0).transpose(np.argsort(own.transpose))
    return labels


def _networks(
    task: PreparedTask,
    config: Config,
    models: Models,
    weights: Sequence[Callable[[], Mapping[str, Any]]],
) -> Iterator[nn.Module]:
    """Yield the network of each training, one in memory at a time."""
    given = Data(samples=1, classes=len(task.labels), channels=task.volumes.channels)
    for state in weights:
        network = network_of(config, given, models)
        network.load_state_dict(state())
        yield network
