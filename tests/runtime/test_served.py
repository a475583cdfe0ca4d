"""A store behind a server: what many runs write at once, and what a browser shows of it."""

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import mlflow
import pytest
from databases import new_database

from raykb.runtime.tracking import Tracker

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]
RUNS, SEEDS, STEPS = 3, 2, 10
ACCURACY = {"fixmatch": 0.75, "supervised": 0.5}
TABLE = "| method | top-1 % |\n| --- | --: |\n| fixmatch | 75.00 |"
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of a server, and the database behind it."""
    folder = tmp_path_factory.mktemp("store")
    uri = new_database(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(folder), "--port", port, "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nobody asks for it
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, start_new_session=True, env=environment, **quiet)
    try:
        yield f"http://127.0.0.1:{port}", uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def value(label, seed, step):
    return ACCURACY[label] * step / STEPS + seed / 1000


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    """Have several runs write at once, each with children; return the page of each."""
    pages = [""] * RUNS

    def write(place):
        spool = tmp_path_factory.mktemp("spool")
        with Tracker(store[0], "served", spool=spool) as tracker:
            parent = tracker.run(f"run-{place}")
            children = {
                (label, seed): tracker.run(
                    f"{label}/seed-{seed}",
                    parent=parent,
                    params={"label": label, "seed_number": seed},
                )
                for label in ACCURACY
                for seed in range(SEEDS)
            }
            for step in range(1, STEPS + 1):
                for (label, seed), child in children.items():
                    found = value(label, seed, step)
                    child.log(step, {"train/loss": 1 - found, "valid/top1": found})
            for (label, seed), child in children.items():
                child.log(STEPS, {"test/top1": value(label, seed, STEPS), "time/wall_s": 1.5})
                child.finish()
            parent.note(TABLE)
            parent.view("label", ["test/top1"])
            assert parent.id(500)
            assert tracker.close(wait_s=500) == 0
            pages[place] = parent.page()

    threads = [threading.Thread(target=write, args=(place,)) for place in range(RUNS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return pages


def history(client, run, name):
    points = client.get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in points]


def test_what_many_children_write_at_once_is_there_once_and_whole(store, written):
    assert all(written)
    client = mlflow.MlflowClient(store[1])
    (experiment,) = [one for one in client.search_experiments() if one.name == "served"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "label" in run.data.params]
    assert len(runs) - RUNS == len(children) == RUNS * len(ACCURACY) * SEEDS
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in children:
        label, seed = run.data.params["label"], int(run.data.params["seed_number"])
        found = {name: history(client, run, name) for name in run.data.metrics}
        curve = [(step, value(label, seed, step)) for step in range(1, STEPS + 1)]
        assert found == {
            "valid/top1": curve,
            "train/loss": [(step, 1 - top1) for step, top1 in curve],
            "test/top1": curve[-1:],
            "time/wall_s": [(STEPS, 1.5)],
        }


def opened(address, folder):
    """Return the texts of a page, in order, once a browser is through with its scripts."""
    if BROWSER is None:
        pytest.skip(f"there is no browser ({', '.join(NAMES)}): apt-get install chromium")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--window-size=1400,2400", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder}", address],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", "\n", done.stdout, flags=re.DOTALL)
    return [line for line in map(str.strip, html.unescape(text).splitlines()) if line]


def test_a_run_s_page_opens_on_the_charts_of_its_own_children(written, tmp_path):
    shown = opened(written[0], tmp_path)
    place = shown.index("matching runs")
    assert shown[place - 1] == str(len(ACCURACY) * SEEDS)  # none of the others, nor the parent
    assert {"Group: fixmatch", "Group: supervised", "fixmatch/seed-1"} < {*shown[:place]}
    charts = shown[place:]
    first = ["results", "test/top1", "valid/top1", "train/loss", "time/wall_s", "train"]
    assert sorted(first, key=charts.index) == first
    bars = charts[charts.index("test/top1") : charts.index("valid/top1")]
    assert {"0.50", "0.75"} < {*bars}  # means over seeds


def test_a_run_s_own_page_has_its_table(written, store, tmp_path):
    number, run_id = re.search(r"experiments/(\d+)/.*ShareKey=(\w+)", written[0]).groups()
    shown = opened(f"{store[0]}/#/experiments/{number}/runs/{run_id}", tmp_path)
    place = shown.index("top-1 %")
    assert shown[place - 1 : place + 3] == ["method", "top-1 %", "fixmatch", "75.00"]
