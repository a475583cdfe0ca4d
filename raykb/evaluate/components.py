"""What is left of a segmentation after all but the largest piece of a label is taken away.

It helps where there is one organ, and harms where there are several lesions; which it is,
cross-validation says (nnU-Net).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from raykb.later import Later
from raykb.metrics.overlap import dice_by_label, foreground_mean, label_means

ndimage = Later("scipy.ndimage")

Way = Literal["plain", "foreground", "labels", "both"]
WAYS: tuple[Way, ...] = get_args(Way)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected piece of a boolean mask; of equal ones the first.

    Voxels that touch at a corner are connected. An empty mask stays empty.
    """
    if not mask.any():
        return mask
    (box,) = ndimage.find_objects(mask.view(np.uint8))  # an organ is a small part of a volume
    within = ndimage.generate_binary_structure(mask.ndim, mask.ndim)
    pieces, count = ndimage.label(mask[box], within)
    if count < 2:
        return mask
    sizes, largest = np.bincount(pieces.ravel())[1:], np.zeros_like(mask)
    largest[box] = pieces == 1 + sizes.argmax()
    return largest


def largest_components(segmentation: np.ndarray, labels: Collection[int]) -> np.ndarray:
    """Return a segmentation with the largest piece alone of each of ``labels``; the rest is 0.

    Args:
        segmentation: numbers of labels.
        labels: those for which it helps.
    """
    kept: np.ndarray = segmentation.copy()
    for label in labels:
        mask = segmentation == label
        kept[mask & ~largest_component(mask)] = 0
    return kept


class Kept(NamedTuple):
    """Of what the largest piece alone stays.

    Attributes:
        foreground: of all labels together, which comes first.
        labels: then of each of these by itself.
    """

    foreground: bool = False
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(["all labels together"] * self.foreground + [*self.labels])

    def of(self, segmentation: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return a segmentation with what is to stay; the rest is 0.

        Args:
            segmentation: numbers of labels.
            names: of all labels by number; 0 is the background.
        """
        foreground = segmentation > 0
        away = foreground & ~largest_component(foreground) if self.foreground else False
        kept: np.ndarray = np.where(away, 0, segmentation)
        return largest_components(kept, [names.index(label) for label in self.labels])


def component_scores(
    prediction: np.ndarray, reference: np.ndarray, labels: Sequence[str]
) -> dict[Way, dict[str, float]]:
    """Return the Dice of each label of a case, as it was predicted and after each way to keep less.

    Args:
        prediction: label map.
        reference: label map of the same shape.
        labels: names by number; 0 is the background.
    """
    each = tuple(labels[1:])
    ways: dict[Way, Kept] = {
        "plain": Kept(),
        "foreground": Kept(foreground=True),
        "labels": Kept(labels=each),
        "both": Kept(foreground=True, labels=each),
    }
    return {
        way: dice_by_label(kept.of(prediction, labels), reference, labels)
        for way, kept in ways.items()
    }


class Choice(NamedTuple):
    """What cross-validation says."""

    kept: Kept
    before: dict[str, float]  # mean Dice of each label over the held-out cases
    after: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON has it: None for a label that no case has."""
        dice = {
            when: {label: None if math.isnan(mean) else mean for label, mean in means.items()}
            for when, means in (("before", self.before), ("after", self.after))
        }
        return self.kept._asdict() | {"dice": dice}


def chosen(cases: Sequence[Mapping[Way, Mapping[str, float | None]]]) -> Choice:
    """Return what helps in cross-validation: nnU-Net's rule.

    The largest piece of the foreground alone stays if that raises the mean over labels and lowers
    no label's; then that of a label by itself if that raises its mean.

    Args:
        cases: for each case that a training did not see its :func:`component_scores`; a score that
            is not defined, NaN or None, counts in no mean.
    """
    means = {way: label_means([_known(case[way]) for case in cases]) for way in WAYS}
    plain, whole = means["plain"], means["foreground"]
    gains = foreground_mean([whole]) > foreground_mean([plain])
    foreground = gains and not any(whole[label] < plain[label] for label in plain)
    source, own = (whole, means["both"]) if foreground else (plain, means["labels"])
    labels = tuple(label for label in source if own[label] > source[label])
    after = {label: (own if label in labels else source)[label] for label in source}
    return Choice(Kept(foreground, labels), plain, after)


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {label: math.nan if score is None else score for label, score in scores.items()}
