"""Whether what a run has left agrees: its files with each other, and with the tracking store.

Nothing is changed here; :mod:`raykb.runtime.closing` does what can be done without the run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from raykb.runtime.checking_results import told
from raykb.runtime.checking_tracking import pieces, runs
from raykb.runtime.checking_trainings import checkpoints, order, steps, whole
from raykb.runtime.left import Left, Told
from raykb.runtime.lock import holder
from raykb.runtime.storage import Storage


@dataclass(frozen=True)
class Finding:
    """Something that does not hold.

    Attributes:
        invariant: which, a key of :data:`INVARIANTS`.
        where: file or run.
        what: is wrong there.
        remedy: what to do.
    """

    invariant: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """What must hold of every run.

    Attributes:
        text: what it is.
        broken: yields where it does not hold.
        at_rest: whether it can be judged only where nobody holds the run directory.
        tracked: whether it can be judged only with the tracking store.
    """

    text: str
    broken: Callable[[Left], Told]
    at_rest: bool = False
    tracked: bool = False


def check(
    storage: Storage, *, tracking_uri: str | None = None, under_way: bool | None = None
) -> list[Finding]:
    """Return what does not hold of a run.

    Args:
        storage: the run directory.
        tracking_uri: of the store that has its runs; None looks at files alone.
        under_way: whether a process holds the directory; None asks
            :func:`raykb.runtime.lock.holder`.

    Raises:
        ValueError: there is no record of a run, or no such store.
        ConnectionError: the store does not answer.
        StorageError: the storage does not do what it should.
    """
    if under_way is None:
        under_way = bool(holder(storage))
    left = Left.of(storage, tracking_uri)
    return [
        Finding(name, *broken)
        for name, each in INVARIANTS.items()
        if not (under_way and each.at_rest)
        for broken in each.broken(left)
    ]


def half_written(left: Left) -> Told:
    """I6: yield what writers that died have left."""
    for name in left.half_written:
        yield name, "was begun and never finished", "check_run.py --clean removes it"


INVARIANTS = {
    "I1": Invariant(
        text="each finished piece is in ledger and tracking store once, with equal figures",
        broken=pieces,
        at_rest=True,
    ),
    "I2": Invariant(
        text="no checkpoint is of a later step than its training's result", broken=order
    ),
    "I3": Invariant(text="each committed checkpoint is what its manifest says", broken=checkpoints),
    "I4": Invariant(
        text="result, weights and details of each finished training are whole", broken=whole
    ),
    "I5": Invariant(
        text="each finished training took the steps of its recipe, and is tracked at the last",
        broken=steps,
    ),
    "I6": Invariant(
        text="writers that died have left nothing half written", broken=half_written, at_rest=True
    ),
    "I7": Invariant(
        text="the tracking store has the run and each training once, as they ended",
        broken=runs,
        at_rest=True,
        tracked=True,
    ),
    "I8": Invariant(
        text="what a run told in the end is what its trainings found", broken=told, at_rest=True
    ),
}
"""Those of the platform's promises that files and tracking store can tell."""
