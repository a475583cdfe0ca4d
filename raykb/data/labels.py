"""Which images of a data set are labelled: drawn once from a seed, then kept as a file.

A run that goes on reads the file and never draws again, since what draws may have changed in the
meantime, and other labels would be labels that the method was not to know.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raykb.data.parquet import named_classes, parquet_records
from raykb.data.records import Records
from raykb.data.splits import stratified_subset
from raykb.engine.arguments import at_least, check_settings
from raykb.engine.foreign import parsed


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which training images are labelled; a section of the config.

    Args:
        count: how many, over all classes, which have shares in them as in the whole set.
    """

    count: int

    def __post_init__(self) -> None:
        check_settings(self, count=at_least(1))

    def draw(self, records: Records, seed: int) -> Records:
        """Return the labelled ones of ``records``.

        Raises:
            ValueError: so many cannot be drawn from these classes, or a rare one got no label.
        """
        try:
            positions = stratified_subset(records.labels, self.count, seed=seed % 2**32)
        except ValueError as error:
            raise ValueError(f"count: {self.count}, cannot be drawn ({error})") from error
        drawn = records.subset(positions)
        without = np.setdiff1d(records.labels, drawn.labels)
        if len(without):
            raise ValueError(
                f"count: {self.count}, too few of {len(records)} images to label one of the rare "
                f"class {records.classes[without[0]]!r}; label more, or leave out the class"
            )
        return drawn


def to_json(draws: Sequence[Records]) -> str:
    """Return ids and labels of each draw as JSON."""
    splits = [{"ids": draw.ids.tolist(), "labels": draw.labels.tolist()} for draw in draws]
    return json.dumps({"schema": 1, "classes": list(draws[0].classes), "splits": splits})


def from_json(
    text: str | bytes, records: Records, sizes: Sequence[int] | None = None
) -> list[Records]:
    """Return the draws that :func:`to_json` wrote, of the same ``records``.

    Args:
        text: what it wrote.
        records: all images that were drawn from.
        sizes: of the draws, where they are known.

    Raises:
        ValueError: the text is damaged, or a labelled image is not among the records any more, or
            has another label, or the draws are of other sizes.
    """
    order = np.argsort(records.ids)
    draws = []
    try:
        splits = [(split["ids"], split["labels"]) for split in parsed(text)["splits"]]
        kept = [[np.array(column, np.int64) for column in split] for split in splits]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the labels kept with the run cannot be read ({error!r})") from error
    if sizes is not None and (found := [len(ids) for ids, _ in kept]) != list(sizes):
        raise ValueError(
            f"has splits of {found} images, and the run began with {list(sizes)}; put the file "
            "back as it was, or start a new run"
        )
    for number, (ids, labels) in enumerate(kept):
        places = np.searchsorted(records.ids, ids, sorter=order).clip(max=len(records) - 1)
        rows = order[places]
        other = (records.ids[rows] != ids) | (records.labels[rows] != labels)
        if other.any():
            raise ValueError(
                f"{int(other.sum())} of the {len(ids)} labelled images of split {number}, as id "
                f"{ids[other][0]} of class {labels[other][0]}, are not in the data or have another "
                "label there: it is not the data that the run began with"
            )
        draws.append(records.subset(np.sort(rows)))
    return draws


def true_labels(
    files: Sequence[str], classes: Sequence[str], *, selected: bool = False
) -> dict[int, int]:
    """Return the labels by id that Parquet files have of their images.

    Args:
        files: those that are streamed, so that the labels are those of these very images.
        classes: names of the classes, by which labels are numbered.
        selected: whether these are some of the files' classes, or in another order: then labels
            are found by their names, and -1 is an image of none of these.

    Raises:
        ValueError: the files have no labels, or do not name their classes where this is needed.
    """
    if selected and set(classes).isdisjoint(itertools.chain(*map(named_classes, files))):
        raise ValueError(
            "'data' selects and renumbers classes, and the files of 'unlabelled' name none of "
            "these; pipelines/prepare_data.py writes files that name theirs"
        )
    records = parquet_records(files, None if selected else classes)
    numbers = [classes.index(name) if name in classes else -1 for name in records.classes]
    labels = np.array(numbers)[records.labels]
    return dict(zip(records.ids.tolist(), labels.tolist(), strict=True))
