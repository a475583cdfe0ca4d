"""Progress with an estimate of what is left: a bar in a terminal, now and then a line elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts up to ``total`` on standard error; use it as a context.

    Args:
        title: what is done.
        total: how many pieces there are.
        unit: what a piece is called.
    """

    def __init__(self, title: str, total: float, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._note = 0.0, ""
        self._began = self._printed = time.monotonic()
        self._bar = (
            tqdm(
                total=total,
                desc=title,
                unit=f" {unit}",
                bar_format="{desc}: {percentage:3.0f}%|{bar:24}| {n:.4g}/{total:.4g}{unit} "
                "[{elapsed}<{remaining}]{postfix}",
            )
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
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._line()

    def update(self, done: float, note: str = "") -> None:
        """Say that ``done`` pieces are done in all, with a ``note`` behind."""
        self._done, self._note = done, note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._began
        speed = self._done / elapsed if elapsed else 0.0
        parts = [
            f"{self._title}: {self._done:.4g}/{self._total:.4g} {self._unit}".rstrip(),
            f"{elapsed:.0f} s",
            f"about {(self._total - self._done) / speed:.0f} s left"
            if 0 < self._done < self._total
            else "",
            self._note,
        ]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)
