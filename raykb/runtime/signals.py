"""How a signal to stop ends a run: raised in the main thread, and the process ended if that hangs.

Python calls its handlers in the main thread alone, between two of its instructions. A signal that
another thread of the process got, or that came just before the main one began to wait, would be
heard when that wait is over. So a thread of its own hears each signal at once, by the wake-up file
descriptor of Python, and wakes the main thread.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from raykb.engine.faults import causes

_STOP_S = 15.0  # for Ray to end what runs, after a signal
_LAST_S = 45.0  # for the last words
_WAKE_S = 0.2  # until the main thread is woken, and again

# A process that was forked off tells its own signals to nobody.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Interrupted(BaseException):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def is_interrupt(error: BaseException) -> bool:
    """Return whether a signal to stop was the cause; Ray's own code raises a SystemError of it."""
    return any(isinstance(each, Interrupted) for each in causes(error))


class Stop:
    """A handler of signals to stop: the first of them is raised, and those after it are ignored.

    SIGHUP says that the terminal is gone; it is left alone where it is ignored, as by ``nohup``.

    Attributes:
        signal: the one that came; None before.
    """

    def __init__(self) -> None:
        self.signal: Interrupted | None = None

    def __call__(self, number: int, frame: Any) -> None:
        """Raise :class:`Interrupted`; Python calls this in the main thread."""
        for other in signal.valid_signals():
            if signal.getsignal(other) is self:
                signal.signal(other, signal.SIG_IGN)
        self.signal = Interrupted(number)
        raise self.signal

    @contextlib.contextmanager
    def handles(self) -> Iterator[None]:
        """Be the handler of SIGINT, SIGTERM and SIGHUP."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        numbers += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def within(
        self, last: Callable[[int], None], *, first: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """End the process soon after a signal, whatever the main thread and Ray do.

        A signal to the whole process group, as ``timeout`` and service managers send it, ends a
        local Ray at once. What it is asked then it does not answer for a minute, and aborts the
        process.

        Args:
            last: is called in a thread, with the exit status, before the process is ended.
            first: is called in a thread as soon as a signal is heard.
        """
        heard, tell = socket.socketpair()
        tell.setblocking(False)
        over = threading.Event()
        main = threading.get_ident()

        def ours(number: int) -> bool:
            return signal.getsignal(number) is self

        def listen() -> None:
            with heard:
                while number := next(iter(heard.recv(1)), 0):
                    if ours(number) or self.signal:
                        with contextlib.suppress(OSError):  # it ends in time nevertheless
                            first()
                        return end(number)

        def end(number: int) -> None:
            ends = time.monotonic() + _STOP_S
            while not over.wait(_WAKE_S):
                if ours(number) and not self.signal:  # the main thread has not heard it
                    signal.pthread_kill(main, number)
                if time.monotonic() > ends:
                    # Where even the last words have no end, where that is, and an end without them.
                    faulthandler.dump_traceback_later(_LAST_S, exit=True, file=2)
                    last(128 + number)
                    sys.stdout.flush()
                    os._exit(128 + number)

        threading.Thread(target=listen, name="signals", daemon=True).start()
        before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            over.set()
            tell.close()  # the end of what is heard
