"""What a report is made of."""

from typing import Any, NamedTuple


class Told(NamedTuple):
    """What a finished training told.

    Attributes:
        label: of what is compared.
        seed: its number.
        metrics: the last values, by full name as ``"test/top1"``.
        details: ``"confusion"``: (C, C), how often the class of the row was taken for that of the
            column.
        history: of each metric, (step, value) pairs.
        steps: that it took.
    """

    label: str
    seed: int
    metrics: dict[str, float]
    details: dict[str, Any]
    history: dict[str, list[tuple[int, float]]]
    steps: int
