"""What users see of a metric: its heading, its scale, and which way is better."""

from typing import NamedTuple

PERCENT = 100.0


class Metric(NamedTuple):
    """How a metric is shown.

    Attributes:
        heading: of a column, or of an axis.
        scale: by which values are multiplied; 100 makes percent of shares.
        higher_is_better: or else the lowest value is the best.
    """

    heading: str
    scale: float = 1.0
    higher_is_better: bool = True


METRICS = {
    "test/top1": Metric("top-1 %", PERCENT),
    "test/top5": Metric("top-5 %", PERCENT),
    "test/dice": Metric("Dice %", PERCENT),
    "test/nsd": Metric("NSD %", PERCENT),
    "test/loss": Metric("loss", higher_is_better=False),
    "test/linear_probe/top1": Metric("linear probe top-1 %", PERCENT),
    "test/knn/top1": Metric("kNN top-1 %", PERCENT),
    "test/ood/auroc": Metric("AUROC of other images %", PERCENT),
    "test/spread": Metric("spread of features"),
    "pseudo_labels/correct": Metric("correct pseudo-labels %", PERCENT),
    "pseudo_labels/precision": Metric("precision of pseudo-labels %", PERCENT),
    "pseudo_labels/confident_and_correct": Metric("confident and correct %", PERCENT),
    "pseudo_labels/mask_rate": Metric("mask rate %", PERCENT),
    "pseudo_labels/cluster_size": Metric("cluster size"),
}


BY_LABEL = {"test/dice": "Dice", "test/nsd": "NSD"}  # each label has its own, test/dice/liver


def metric(name: str) -> Metric:
    """Return how a metric is shown; one that no table has is shown as it is, by its own name.

    Of such a one more is better, unless the last part of its name has "loss" or "error" in it.
    """
    if name in METRICS:
        return METRICS[name]
    family, _, last = name.rpartition("/")
    if family in BY_LABEL:
        return Metric(f"{BY_LABEL[family]} of {last.replace('_', ' ')} %", PERCENT)
    return Metric(name, higher_is_better=not any(word in last for word in ("loss", "error")))
