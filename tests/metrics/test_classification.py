import numpy as np
import pytest
import torch

from raykb.metrics.classification import (
    class_accuracies,
    confusion_matrix,
    paired_difference,
    top_k_accuracy,
)

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
LABELS = torch.tensor([0, 2, 2, 2])


@pytest.mark.parametrize(("k", "expected"), [(1, 0.5), (2, 0.75), (3, 1.0)])
def test_top_k_counts_labels_among_the_k_largest(k: int, expected: float):
    assert top_k_accuracy(LOGITS, LABELS, k) == expected


def test_top_1_is_the_share_of_the_largest():
    assert top_k_accuracy(LOGITS, LABELS) == 0.5


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_be_a_number_of_classes(k: int):
    with pytest.raises(ValueError, match=rf"k={k}: must be in 1\.\.3"):
        top_k_accuracy(LOGITS, LABELS, k)


def test_the_confusion_matrix_counts_label_by_prediction():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 50))
    expected = np.zeros((4, 4), int)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    made = confusion_matrix(torch.from_numpy(predictions), torch.from_numpy(labels), 4)
    assert made.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([3, 0], [0, 0], r"predictions: 3, must be in 0\.\.2"),
        ([1], [-1], r"labels: -1, must be in 0\.\.2"),
        ([1, 2], [1], r"predictions, labels: \(2,\) and \(1,\), must both be \(N,\)"),
    ],
)
def test_a_confusion_of_what_is_no_class_is_refused(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(predictions), torch.tensor(labels), 3)


def test_class_accuracies_are_shares_of_rows_and_nan_without_members():
    made = class_accuracies(torch.tensor([[3, 1, 0], [0, 0, 0], [1, 1, 2]]))
    assert made[[0, 2]].tolist() == [0.75, 0.5]
    assert made[1].isnan()


def test_a_paired_difference_of_three_seeds_by_hand():
    made = paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # 1, 2, 3
    assert made.mean == 2.0
    assert made.sd == 1.0
    half = 4.302652729911275 / 3**0.5  # 97.5 % point of Student's t with 2 degrees of freedom
    assert made.low == pytest.approx(2.0 - half)
    assert made.high == pytest.approx(2.0 + half)


def test_confidence_widens_the_interval():
    made = paired_difference([1.0, 2.0], [0.0, 3.0], confidence=0.5)
    assert (made.low, made.high) == pytest.approx((-1.0, 1.0))  # t = 1 with 1 degree of freedom
    wider = paired_difference([1.0, 2.0], [0.0, 3.0])
    assert wider.low < made.low < made.high < wider.high


def test_what_pairs_share_cancels():
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=6) * 100
    made = paired_difference((seeds + 1.0).tolist(), seeds.tolist())
    assert made.low == pytest.approx(1.0)
    assert made.high == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b", "confidence"), [([1.0], [1.0], 0.9), ([1.0, 2.0], [1.0], 0.9), ([1, 2], [1, 2], 1.0)]
)
def test_unpaired_or_single_scores_are_refused(a: list[float], b: list[float], confidence: float):
    with pytest.raises(ValueError, match="equally many, at least 2"):
        paired_difference(a, b, confidence=confidence)
