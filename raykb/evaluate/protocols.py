"""Protocols that say what a backbone is worth, by name; each is a section of the config."""

from collections.abc import Callable

from raykb.evaluate.backbone import BackboneProtocol
from raykb.evaluate.corruption import Corruption
from raykb.evaluate.fine_tuning import FineTuning
from raykb.evaluate.knn import KNN
from raykb.evaluate.linear_probe import LinearProbe
from raykb.evaluate.localisation import Localisation
from raykb.evaluate.regions import Regions
from raykb.evaluate.retrieval import Retrieval

PROTOCOLS: dict[str, Callable[..., BackboneProtocol]] = {
    "linear_probe": LinearProbe,
    "knn": KNN,
    "fine_tuning": FineTuning,
    "retrieval": Retrieval,
    "regions": Regions,
    "localisation": Localisation,
    "corruption": Corruption,
}
