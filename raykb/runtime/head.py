"""Without its head a cluster is lost; the driver says so, and ends, before Ray aborts it.

Ray gives up after a minute (``gcs_rpc_server_reconnect_timeout_s``), in the middle of whatever the
driver is at, and says nothing of how to go on.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

_LOOK_S = 5.0
_LOOKS = 9


def answers(address: str) -> bool:
    """Return whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def watched_head(lost: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Give what is to be called with the head's address once it is known.

    Args:
        lost: is called, in a thread, with a line of words when the head has not answered for so
            many looks in a row; looks are counted, so that a suspended machine misses nothing.
    """
    over = threading.Event()

    def look(address: str) -> None:
        missed = 0
        while missed < _LOOKS:
            if over.wait(_LOOK_S):
                return
            missed = 0 if answers(address) else missed + 1
        lost(f"Ray's head at {address} does not answer any more; the cluster is lost")

    try:
        yield lambda address: threading.Thread(target=look, args=[address], daemon=True).start()
    finally:
        over.set()
