"""What a storage may get over is tried again, with growing pauses, until its time is up.

A network disk that comes back or an object store that throttles answers after a while; a file that
is not there, a right that is missing and a full disk do not change by waiting. Pause n is

    p_n = min(p_0 2^n, p_max) u,    u in [1/2, 1)

where u is of the stream of place and n, so that workers which met one fault do not return at once.
"""

import errno
import itertools
import logging
import math
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from raykb.engine.seeding import stream_seed
from raykb.runtime.secrets import redacted

PATIENCE = "RAYKB_STORAGE_PATIENCE_S"
"""Environment variable: seconds for which a storage that fails is asked again; by default 120."""

_FIRST_S, _LONGEST_S = 0.5, 30.0
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENODEV,
    errno.ENOLCK,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.EROFS,  # as a disk is mounted that is moved to another server
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_LASTING = re.compile(  # in what object stores say, which have no numbers
    r"access.?denied|permission|forbidden|unauth|credential|signature|expired|invalid|directory"
    r"|no.?such|not.?found|not a regular file|not.?implemented|status:? 4(?!08|29)\d\d",
    re.IGNORECASE,
)

_NUMBERED = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class StorageError(OSError):
    """A storage cannot be read or written; the message names reason, room where written, file."""


def patience_s() -> float:
    """Return for how long a storage that fails is asked again; raises ValueError for no time."""
    given = os.environ.get(PATIENCE, "120")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"{PATIENCE}: {given!r}, must be seconds, at least 0; with 0 a storage that fails "
            "ends the run at once"
        )
    return seconds


def may_pass(error: OSError) -> bool:
    """Return whether an error may be over by itself: not a missing file or right, or a full disk.

    One without a number is of an object store, and passes unless its words say otherwise.
    """
    if error.errno is not None:
        return error.errno in _PASSING
    words = re.sub(r"'[^']*'", "", str(error))  # without names of keys and buckets
    return not isinstance(error, _NUMBERED) and _LASTING.search(words) is None


def pause_s(place: str, number: int) -> float:
    """Return the pause before retry ``number``, from 0 on, of what is done at ``place``."""
    share = stream_seed(0, "retry", place, number) / 2**63  # [0, 1)
    return min(_FIRST_S * 2.0**number, _LONGEST_S) * (1 + share) / 2


def retried(operation: Callable[[], _T], place: str) -> _T:
    """Return what an operation on a storage returns; it may be done more than once.

    Raises:
        OSError: one that does not pass, or has not passed within :func:`patience_s`.
    """
    limit, begin = patience_s(), time.monotonic()
    for number in itertools.count():
        try:
            return operation()
        except OSError as error:
            pause, passed = pause_s(place, number), time.monotonic() - begin
            if not may_pass(error):
                raise
            if passed + pause > limit:
                tries = f"tried {number + 1} times in {passed:.0f} s"
                raise OSError(error.errno, f"{error.strerror or error} ({tries})") from error
            told = redacted(f"{place}: {error}")
            _logger.warning("%s; tried again in %.1f s", " ".join(told.split()), pause)
            time.sleep(pause)
    raise AssertionError  # the count has no end
