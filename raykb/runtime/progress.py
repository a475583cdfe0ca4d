"""Progress with an estimate of what is left: one line, rewritten in a terminal, else now and then.

final trainings: 7 of 18 trainings, 40 %, about 3 min left
"""

import sys
import time
from collections import deque
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0
_OPENING_S = 2.0


class Progress:
    """Counts up to ``total`` on standard error; use it as a context.

    Args:
        title: what is done.
        total: how many pieces there are; of a single one the line tells the percent alone.
        unit: what several pieces are called.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._said = ""
        self._pace = _Pace()
        self._began = self._printed = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=title, bar_format="|{bar:20}| {desc}", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._show(f"{self._said}, took {_told(time.monotonic() - self._began)}")
        if self._bar is not None:
            self._bar.close()

    def update(
        self, done: float, note: str = "", *, finished: int | None = None, before: float = 0.0
    ) -> None:
        """Say how much is done in all.

        Args:
            done: pieces, each with the part of it that is done.
            note: stands at the line's end.
            finished: pieces that are done to the end; the whole ones in ``done`` if None.
            before: how much of ``done`` an earlier run did, which tells nothing of the pace.
        """
        whole = int(done) if finished is None else finished
        percent = 100 if done >= self._total else min(round(100 * done / self._total), 99)
        left = self._pace.left(done - before, self._total - done)
        parts = [
            f"{whole} of {self._total} {self._unit}" if self._total > 1 else "",
            f"{percent} %",
            "" if left is None else f"about {_told(left, step_s=5)} left",
            note,
        ]
        self._said = f"{self._title}: " + ", ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.n = done
            self._show(self._said)
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._show(self._said)

    def _show(self, line: str) -> None:
        self._printed = time.monotonic()
        if self._bar is not None:
            self._bar.set_description_str(line)
        else:
            print(line, file=sys.stderr, flush=True)


class _Pace:
    """How fast new work is done, over the later half of the time since the first of it.

    So the time that workers take to start does not count, what a search finds in its ledger is
    soon forgotten, and work that becomes slower is soon known to. In the first two seconds nothing
    is said: workers that begin together report together.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._points: deque[tuple[float, float]] = deque()  # (time, new), the older half dropped

    def left(self, new: float, rest: float) -> float | None:
        """Return the seconds that ``rest`` takes once ``new`` is done; None if not known yet."""
        now = time.monotonic()
        if self._first is None:
            if new <= 0:
                return None
            self._first = now
        self._points.append((now, new))
        while len(self._points) > 1 and self._points[1][0] <= (self._first + now) / 2:
            self._points.popleft()
        since, at = self._points[0]
        if now - self._first < _OPENING_S or new <= at or rest <= 0:
            return None
        return rest * (now - since) / (new - at)


def _told(seconds: float, step_s: int = 1) -> str:
    """Return a time as people tell it, seconds in steps of ``step_s``: 25 s, 3 min, 1.5 h."""
    if seconds < 120:
        return f"{max(step_s * round(seconds / step_s), step_s)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
