"""What tracking costs a training: time of a call, and of 10,000 points until MLflow has them.

Run it by hand, ``python tests/benchmarks/bench_tracking.py``; it prints a Markdown table.
"""

import logging
import socket
import statistics
import tempfile
import time
from pathlib import Path

from raykb.report.tables import markdown
from raykb.runtime.tracking import Tracker, default_uri

POINTS, REPEATS = 10_000, 5


def measure(uri: str, folder: Path) -> list[float]:
    """Return median and 99th percentile of a call, and all seconds until sent (or given up)."""
    tracker = Tracker(uri, "bench", spool=folder)
    run = tracker.run("run")
    tracker.ready(0.1 if uri.startswith("http") else 120.0)
    calls, start = [], time.perf_counter()
    for step in range(POINTS):
        before = time.perf_counter()
        run.log(step, {"train/loss": 1.0 / (step + 1)})
        calls.append(time.perf_counter() - before)
    tracker.close(wait_s=0.0 if uri.startswith("http") else 120.0)
    seconds = time.perf_counter() - start
    calls.sort()
    return [1e6 * calls[POINTS // 2], 1e6 * calls[POINTS * 99 // 100], seconds]


def main() -> None:
    """Measure sqlite and a server that accepts and never answers, in turn."""
    logging.getLogger("raykb").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        folder = Path(name)
        stores = {
            "sqlite": default_uri(folder),
            "a server that hangs": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        figures: dict[str, list[list[float]]] = {store: [] for store in stores}
        for repeat in range(REPEATS):
            for number, (store, uri) in enumerate(stores.items()):
                figures[store].append(measure(uri, folder / f"spool-{repeat}-{number}"))
    rows = []
    for store, repeats in figures.items():
        cells = []
        for column, digits in zip(zip(*repeats, strict=True), (0, 0, 2), strict=True):
            spread = f"{min(column):.{digits}f} to {max(column):.{digits}f}"
            cells.append(f"{statistics.median(column):.{digits}f} ({spread})")
        rows.append([store, *cells])
    head = ["store", "a call, median, µs", "99 of 100, µs", f"{POINTS:,} points, s"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
