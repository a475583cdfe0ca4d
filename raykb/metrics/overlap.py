"""How far segmentations overlap: the Dice similarity coefficient, by label and over cases.

    DSC(A, B) = 2 |A ∩ B| / (|A| + |B|)

Where both masks are empty it is undefined: NaN, which no mean counts. Where one is, it is 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any] | Tensor


def dice(prediction: Array, reference: Array) -> float:
    """Return the Dice similarity coefficient of two masks, in 0..1; NaN if both are empty.

    Args:
        prediction: booleans of any shape, of NumPy or PyTorch.
        reference: as many.

    Raises:
        ValueError: their shapes differ, or they are no booleans.
    """
    predicted, expected = masks(prediction, reference)
    total = np.count_nonzero(predicted) + np.count_nonzero(expected)
    return 2.0 * np.count_nonzero(predicted & expected) / total if total else float("nan")


def dice_by_label(prediction: Array, reference: Array, labels: Sequence[str]) -> dict[str, float]:
    """Return the Dice of each label of one case; see :func:`by_label`."""
    return by_label(dice, prediction, reference, labels)


def by_label(
    score: Callable[[Mask, Mask], float],
    prediction: Array,
    reference: Array,
    labels: Sequence[str],
) -> dict[str, float]:
    """Return a score of masks for each label of one case, but not for the background.

    Args:
        score: of the predicted mask and the reference's.
        prediction: label map, integers of any shape, of NumPy or PyTorch.
        reference: label map of the same shape.
        labels: names by number; 0 is the background.

    Raises:
        ValueError: the maps have different shapes, are no integers, or have a number without name.
    """
    maps = {"prediction": _array(prediction), "reference": _array(reference)}
    _same_shape(maps)
    for name, numbers in maps.items():
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"{name}: {numbers.dtype}, must be integers; a label map has numbers")
        strange = numbers[(numbers < 0) | (numbers >= len(labels))]
        if strange.size:
            raise ValueError(f"{name}: label {strange[0]}, must be in 0..{len(labels) - 1}")
    return {
        label: score(maps["prediction"] == number, maps["reference"] == number)
        for number, label in enumerate(labels)
        if number
    }


def label_means(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over cases of each label's score; NaN counts in none.

    Args:
        cases: scores by label, one mapping a case.
    """
    labels = dict.fromkeys(label for case in cases for label in case)
    return {label: _nan_mean([case[label] for case in cases if label in case]) for label in labels}


def foreground_mean(cases: Sequence[Mapping[str, float]]) -> float:
    """Return the mean over labels of their means over cases; NaN counts in neither."""
    return _nan_mean(list(label_means(cases).values()))


def masks(prediction: Array, reference: Array) -> tuple[Mask, Mask]:
    """Return two masks as arrays of NumPy.

    Raises:
        ValueError: their shapes differ, or they are no booleans.
    """
    both = {"prediction": _array(prediction), "reference": _array(reference)}
    _same_shape(both)
    for name, mask in both.items():
        if mask.dtype != np.bool_:
            raise ValueError(
                f"{name}: {mask.dtype}, must be booleans; compare a label map with its label, "
                f"{name} == 1"
            )
    return both["prediction"], both["reference"]


def _array(values: Array) -> npt.NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _same_shape(arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = " and ".join(str(array.shape) for array in arrays.values())
        raise ValueError(f"{', '.join(arrays)}: {shapes}, must have one shape")


def _nan_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
