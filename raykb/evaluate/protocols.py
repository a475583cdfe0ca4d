"""Protocols that say what a backbone is worth, by name; each is a section of the config."""

from collections.abc import Callable

from raykb.evaluate.backbone import BackboneProtocol
from raykb.evaluate.corruption import Corruption
from raykb.evaluate.fine_tuning import FineTuning
from raykb.evaluate.knn import KNN
from raykb.evaluate.linear_probe import LinearProbe
from raykb.evaluate.retrieval import Retrieval

PROTOCOLS: dict[str, Callable[..., BackboneProtocol]] = {
    "linear_probe": LinearProbe,
    "knn": KNN,
    "retrieval": Retrieval,
    "fine_tuning": FineTuning,
    "corruption": Corruption,
}
