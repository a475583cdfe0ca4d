"""Stream 20 epochs through a small object store of its own; print what memory each took."""

import json
import os
import sys
import time
from pathlib import Path

import ray
import torch

from raykb.data.strong import WeakStrong
from raykb.runtime.streams import RayStream

EPOCHS, STORE_MIB = 20, 80


def resident_mib(pid):
    """Return a process's own memory, without what it shares with others as the object store."""
    with open(f"/proc/{pid}/status") as status:
        [line] = [line for line in status if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def descendants():
    """Return the processes that this one has brought up: those that make views, and Ray's own."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents[int(folder.name)] = int(fields[1])
    found, more = set(), {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more}
        found |= more
    makers = {pid for pid in found if "MapWorker" in Path(f"/proc/{pid}/cmdline").read_text()}
    return makers, found - makers - {os.getpid()}


def main():
    torch.set_num_threads(1)
    os.environ |= {"RAY_free_objects_period_milliseconds": "0"}  # freed at once, so that it is seen
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE_MIB * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    source = RayStream(batch_size=96, seed=0, view=WeakStrong(), paths=sys.argv[1])
    batches, epochs = source.batches(0), []
    for _ in range(EPOCHS):
        stores = []
        for _ in range(source.steps_per_epoch):
            step = next(batches)
            stores.append(source.figures()["stream/store_mib"])
        time.sleep(0.6)  # until the object store is looked at again
        makers, rays = descendants()
        epochs.append(
            source.figures()
            | {
                "store_mib": max(stores),
                "trainer_mib": resident_mib(os.getpid()),
                "makers_mib": sum(map(resident_mib, makers)),
                "rays_mib": sum(map(resident_mib, rays)),
            }
        )
    views = source.steps_per_epoch * (step.weak.numel() + step.strong.numel())
    source.close()
    print(json.dumps({"views_mib": views / 2**20, "epochs": epochs}))


if __name__ == "__main__":
    main()
