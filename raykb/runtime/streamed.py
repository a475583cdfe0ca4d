"""What runs have in common whose trainings have a stream of images beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raykb.comparison import Entry
from raykb.config import build
from raykb.data.feed import Tell
from raykb.engine.loop import Feed
from raykb.runtime.resources import DataResources, WorkerResources
from raykb.runtime.session import Session
from raykb.runtime.streams import TRANSPORTS, BrokenImages, broken_images, has_workers, sharing
from raykb.runtime.train import Result

BROKEN = "broken_images.txt"


def data_workers(config: Mapping[str, Any]) -> dict[str, WorkerResources] | None:
    """Return what runs beside a training; None where nothing does.

    Args:
        config: the sections ``stream``, ``resources.data`` and ``resources.training``.
    """
    each: WorkerResources = build(WorkerResources, config["resources"]["training"])
    resources: DataResources = build(DataResources, config["resources"]["data"])
    return resources.beside(each) if has_workers(config["stream"]) else None


class Streaming(Protocol):
    """Data that have a stream of images for each training."""

    def stream(
        self, config: Mapping[str, Any], sees: Any, seed: int, transports: Any, /, *, tell: Tell
    ) -> Feed | None:
        """Return the stream of a training, or None; ``sees`` says what it is to bring."""


def stream_of(
    session: Session, phase: str, data: Streaming, entry: Entry, sees: Any
) -> Feed | None:
    """Return the stream of an entry's training; broken images are recorded in its folder.

    It takes no more of the cluster than the other trainings of the phase leave it.
    """
    record = BrokenImages(session.storage.below(entry.name).uri)
    stream = data.stream(entry.config, sees, entry.seed, TRANSPORTS, tell=record)
    return sharing(stream, session.parallel[phase], session.config["resources"]["data"]["cpus"])


def tell_broken(session: Session, results: Sequence[Result]) -> None:
    """Say which unlabelled images were broken, whichever training and rank met them."""
    configs = (session.recorded, session.config)  # a run may go on with other resources
    ranks = max(config["resources"]["training"]["workers"] for config in configs)
    found = broken_images([result.storage.uri for result in results], ranks)
    what = "unlabelled images are broken, in whose place others of their shards were seen"
    session.listed(BROKEN, found, what)
