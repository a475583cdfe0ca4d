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
    "test/alc": Metric("ALC"),
    "test/nauc": Metric("NAUC at the end"),
    "test/predictions": Metric("predictions"),
    "test/first_s": Metric("first prediction, s", higher_is_better=False),
    "test/loss": Metric("loss", higher_is_better=False),
    "test/linear_probe/top1": Metric("linear probe top-1 %", PERCENT),
    "test/knn/top1": Metric("kNN top-1 %", PERCENT),
    "test/regions/agreement": Metric("agreement of regions"),
    "test/regions/same": Metric("cosine of the same region"),
    "test/regions/different": Metric("cosine of different regions", higher_is_better=False),
    "test/localisation/top1_iou50": Metric("class right and IoU from 0.5 on %", PERCENT),
    "test/localisation/iou": Metric("IoU of boxes %", PERCENT),
    "test/localisation/top1": Metric("class of the object %", PERCENT),
    "test/weak_localisation/saol/top1": Metric("SAOL: class right %", PERCENT),
    "test/weak_localisation/cam/top1_iou50": Metric("CAM: class right, IoU from 0.5 on %", PERCENT),
    "test/weak_localisation/saol/top1_iou50": Metric(
        "SAOL: class right, IoU from 0.5 on %", PERCENT
    ),
    "test/retrieval/map": Metric("mAP %", PERCENT),
    "test/retrieval/recall_1": Metric("recall at 1 %", PERCENT),
    "test/retrieval/recall_5": Metric("recall at 5 %", PERCENT),
    "test/corruption/error": Metric("error under corruption %", PERCENT, higher_is_better=False),
    "test/corruption/top1": Metric("corrupted top-1 %", PERCENT),
    "test/error": Metric("errors under corruption %", PERCENT, higher_is_better=False),
    "test/clean_error": Metric("errors on clean images %", PERCENT, higher_is_better=False),
    "test/mce": Metric("mCE %", PERCENT, higher_is_better=False),
    "test/passes": Metric("passes of the target network", higher_is_better=False),
    "test/ood/auroc": Metric("AUROC of other images %", PERCENT),
    "test/spread": Metric("spread of features"),
    "pseudo_labels/correct": Metric("correct pseudo-labels %", PERCENT),
    "pseudo_labels/precision": Metric("precision of pseudo-labels %", PERCENT),
    "pseudo_labels/confident_and_correct": Metric("confident and correct %", PERCENT),
    "pseudo_labels/mask_rate": Metric("mask rate %", PERCENT),
    "pseudo_labels/cluster_size": Metric("cluster size"),
    "time/wall_s": Metric("seconds", higher_is_better=False),
    "time/cpu_s": Metric("CPU s", higher_is_better=False),
    "time/gpu_s": Metric("GPU s", higher_is_better=False),
    "memory/peak_mib": Metric("peak MiB", higher_is_better=False),
}
COSTS = ("time/wall_s", "time/cpu_s", "time/gpu_s", "memory/peak_mib")
BEST = "best/"  # before the name of a metric: its best value over the steps
END, ON_THE_WAY = "test/", "valid/"  # one metric, measured at the end and before

FAMILIES = {  # by how their names begin; what follows is in the heading
    "test/dice/": "Dice of {} %",
    "test/nsd/": "NSD of {} %",
    "test/fine_tuning/top1_": "fine-tuned on {} % of labels, top-1 %",
    "test/corruption/top1_": "top-1 under {} %",
}


def metric(name: str) -> Metric:
    """Return how a metric is shown; one that no table has is shown as it is, by its own name.

    Of such a one more is better, unless the last part of its name has "loss" or "error" in it.
    """
    if name in METRICS:
        return METRICS[name]
    if name.startswith(BEST):
        shown = metric(name.removeprefix(BEST))
        return shown._replace(heading=f"best {shown.heading}")
    if name.startswith(ON_THE_WAY):
        at_the_end = name.replace(ON_THE_WAY, END, 1)
        if (shown := metric(at_the_end)).heading != at_the_end:
            return shown._replace(heading=f"{shown.heading} on the way")
    for family, heading in FAMILIES.items():
        if name.startswith(family):
            own = name.removeprefix(family).replace("_", " ")
            return Metric(heading.format(own), PERCENT)
    last = name.rpartition("/")[2]
    return Metric(name, higher_is_better=not any(word in last for word in ("loss", "error")))
