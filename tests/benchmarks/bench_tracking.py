"""What tracking costs a training, and whether a served store keeps what 200 runs write at once.

    python tests/benchmarks/bench_tracking.py calls     # of 10,000 points: a call, and all
    python tests/benchmarks/bench_tracking.py training  # whole ones with and without, in turns
    python tests/benchmarks/bench_tracking.py served    # 200 children of four runs at a server

``training`` has the tracker in the process that trains, which is more than a run pays: there it is
the driver's. ``served`` ends with status 1 where a point is lost, or there twice. Each prints a
Markdown table.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional as F

from raykb.engine.loop import Log, Training, fit
from raykb.engine.seeding import generator
from raykb.models.small_convnet import small_convnet
from raykb.report.tables import markdown
from raykb.runtime.runs import history, tracked_runs
from raykb.runtime.tracking import Tracker, default_uri

POINTS, REPEATS = 10_000, 5
STEPS, LOG_EVERY, TERMS, PAIRS = 1000, 50, 20, 5
RUNS, CHILDREN, LOGGED = 4, 50, 25


def spread(values: Sequence[float], digits: int) -> str:
    """Return median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


# ---------------------------------------------------------------------- calls


def called(uri: str, folder: Path) -> list[float]:
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


def calls(folder: Path) -> bool:
    """Measure sqlite and a server that accepts and never answers, in turn."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stores = {
            "sqlite": default_uri(folder),
            "a server that hangs": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        figures: dict[str, list[list[float]]] = {store: [] for store in stores}
        for repeat in range(REPEATS):
            for number, (store, uri) in enumerate(stores.items()):
                figures[store].append(called(uri, folder / f"spool-{repeat}-{number}"))
    rows = []
    for store, own in figures.items():
        typical, slow, whole = zip(*own, strict=True)
        rows.append([store, spread(typical, 0), spread(slow, 0), spread(whole, 2)])
    head = ["store", "a call, median, µs", "99 of 100, µs", f"{POINTS:,} points, s"]
    print(markdown(head, rows))
    return True


# ---------------------------------------------------------------------- training


def trained(log: Log) -> None:
    """Train a small network on noise, on one thread."""
    images = torch.randn(32, 1, 28, 28, generator=generator(0))
    labels = torch.arange(32) % 10
    network = small_convnet(channels=1, classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step(batch: object, number: int) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()} | {f"term_{n}": loss.detach() for n in range(TERMS)}

    training = Training(
        step=step,
        update=lambda number: {},
        batches=lambda start: iter([None] * STEPS),
        steps=STEPS,
        parts={"model": network},
        log_every=LOG_EVERY,
    )
    fit(training, log=log)


def timed(tracker: Tracker | None, key: str) -> tuple[float, float]:
    """Train; return seconds and CPU seconds until it is over, and MLflow has all of it."""
    start = time.perf_counter(), time.process_time()
    if tracker is None:
        trained(lambda step, figures: None)
    else:
        run = tracker.run(key)
        trained(run.log)
        run.finish()
        tracker.ready()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def training(folder: Path) -> bool:
    """Measure whole trainings with a tracker and without, in turns, the first pair for nothing."""
    pairs = []
    with Tracker(default_uri(folder), "bench", spool=folder / "spool") as tracker:
        for pair in range(PAIRS + 1):
            order = (None, tracker) if pair % 2 else (tracker, None)
            found = {one is None: timed(one, f"run-{pair}") for one in order}
            pairs.append((found[True], found[False]))
    rows = []
    for place, name in enumerate(("seconds", "CPU seconds")):
        without, with_it = ([one[place] for one in own] for own in zip(*pairs[1:], strict=True))
        more = [100 * (b / a - 1) for a, b in zip(without, with_it, strict=True)]
        rows.append([name, spread(without, 2), spread(with_it, 2), spread(more, 2)])
    print(markdown(["of a training", "untracked", "tracked", "more, %"], rows))
    return True


# ---------------------------------------------------------------------- a server


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serve a database in a folder; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", default_uri(folder), "--artifacts-destination", str(folder)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def written(uri: str, spool: Path) -> None:
    """Write a run with its children, all of them at every step, and wait until they are sent."""
    with Tracker(uri, "bench", spool=spool) as tracker:
        parent = tracker.run("run")
        children = [tracker.run(f"child-{n:02d}", parent=parent) for n in range(CHILDREN)]
        for step in range(LOGGED):
            for number, child in enumerate(children):
                child.log(step, {"train/loss": number + step / LOGGED, "train/lr": step})
        if tracker.close(wait_s=600):
            raise RuntimeError(f"{spool}: not all was sent")


def served(folder: Path) -> bool:
    """Have runs write at once, then count every point; return whether each is there once."""
    Tracker(default_uri(folder), "bench", spool=folder / "first").close(wait_s=60)
    with server(folder) as uri:
        spools = [folder / f"spool-{number}" for number in range(RUNS)]
        threads = [threading.Thread(target=written, args=(uri, spool)) for spool in spools]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
    store = default_uri(folder)
    runs = [run for run in tracked_runs(store, "bench") if run.name != "run"]
    right = 0
    for run in runs:
        number = int(run.name[-2:])
        loss = [(step, number + step / LOGGED) for step in range(LOGGED)]
        lr = [(step, float(step)) for step in range(LOGGED)]
        found = [history(store, run, name) for name in ("train/loss", "train/lr")]
        right += found == [loss, lr]
    points = 2 * LOGGED * RUNS * CHILDREN
    head = ["children", "points", "s until all is sent", "children of which all is there"]
    print(markdown(head, [[f"{len(runs)}", f"{points:,}", f"{seconds:.0f}", f"{right}"]]))
    return right == len(runs) == RUNS * CHILDREN


def main() -> int:
    """Measure what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"calls": calls, "training": training, "served": served}
    parser.add_argument("part", choices=parts)
    given = parser.parse_args()
    logging.getLogger("raykb").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        well = parts[given.part](Path(name))
    print(f"\nload {os.getloadavg()[0]:.0f}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
