"""The number of a run directory's holder, which goes with every URI that a worker writes to.

Each holder of a run directory in an object store has a number, one more than the holder before.
A URI as ``s3://bucket/run/final/seed-0#7.2`` says: as holder 7 sees it, two folders below the run
directory. What writes there looks first whether 7 is still the newest number.
"""

import re
from typing import NamedTuple

FOLDER = "lease"
"""Of the run directory; it has a file ``00000007-….json`` for each holder that still matters."""


class LostLease(Exception):
    """Another run has taken over the run directory; this one must not write there any more."""


class Fence(NamedTuple):
    """What a holder's URI says.

    Attributes:
        number: the holder's.
        depth: folders below the run directory.
    """

    number: int
    depth: int = 0

    def __str__(self) -> str:
        return f"#{self.number}.{self.depth}"


def split(uri: str) -> tuple[str, Fence | None]:
    """Return a URI without its fence, and that; raises ValueError for any other ``#…``."""
    place, mark, text = uri.partition("#")
    if not mark:
        return place, None
    if not (found := re.fullmatch(r"(\d+)\.(\d+)", text)):
        raise ValueError(
            f"storage: {uri!r} has a '#'; leave it out, or write %23 for one in a name"
        )
    return place, Fence(int(found[1]), int(found[2]))


def claim(number: int, mark: str) -> str:
    """Return the name of a holder's file; ``mark`` tells apart who took one number at once."""
    return f"{number:08d}-{mark}.json"


def number_of(name: str) -> int:
    """Return the number in the name of a holder's file, 0 for other files."""
    found = re.fullmatch(r"(\d{8,})-\w+\.json", name)
    return int(found[1]) if found else 0
