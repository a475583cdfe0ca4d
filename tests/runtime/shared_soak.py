"""Stream 20 epochs through a small object store of its own; print what memory each took."""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import ray
import torch

from raykb.data.image_views import WeakStrongView
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView
from raykb.engine.loop import Worker
from raykb.runtime.streams import RayData

EPOCHS, STORE_MIB = 20, 80
LIBC = ctypes.CDLL(None)


def told(pid, name):
    """Return what the system tells of a process; nothing of one that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def resident_mib(pid):
    """Return a process's own memory, without what it shares with others as the object store."""
    lines = [line for line in told(pid, "status").splitlines() if line.startswith("RssAnon")]
    return sum(int(line.split()[1]) for line in lines) / 1024


def descendants():
    """Return the processes that this one has brought up: those that make views, and Ray's own."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := told(folder.name, "stat")):
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found, more = set(), {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more}
        found |= more
    makers = {pid for pid in found if "MapWorker" in told(pid, "cmdline")}
    return makers, found - makers - {os.getpid()}


def main():
    torch.set_num_threads(1)
    os.environ |= {"RAY_free_objects_period_milliseconds": "0"}  # freed at once, so that it is seen
    os.environ |= {"RAY_worker_niceness": "0"}  # else a busy neighbour leaves its workers nothing
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE_MIB * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    unlabelled = UnlabelledImages(paths=sys.argv[1], ratio=1)
    cheap = WeakStrong(operations=0, strong_views=3)  # what travels counts here, not what makes it
    view = WeakStrongView(cheap, CropFlipView(mean=[0.3], std=[0.4]))
    source = unlabelled.source(unlabelled.examples(0), view, 48, 0)
    feed = RayData(source, timeout_s=600.0)
    batches, epochs = feed.batches(0, Worker()), []
    for _ in range(EPOCHS):
        stores = []
        for _ in range(source.order.steps_per_epoch):
            next(batches)
            stores.append(feed.figures()["stream/store_mib"])
        time.sleep(0.2)  # until the pipeline is as far ahead as it may be, and rests
        LIBC.malloc_trim(0)  # else what glibc keeps of freed batches goes up and down by 30 MiB
        makers, rays = descendants()
        epochs.append(
            feed.figures()
            | {
                "store_mib": max(stores),
                "trainer_mib": resident_mib(os.getpid()),
                "makers_mib": sum(map(resident_mib, makers)),
                "rays_mib": sum(map(resident_mib, rays)),
            }
        )
    steps, step_mib = source.order.steps_per_epoch, source.step_bytes(0, 0, 1) / 2**20
    feed.close()
    print(json.dumps({"steps": steps, "step_mib": step_mib, "epochs": epochs}))


if __name__ == "__main__":
    main()
