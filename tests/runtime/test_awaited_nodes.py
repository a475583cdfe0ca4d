"""Which nodes a run is planned on where nodes come when work waits for them."""

import os
import subprocess
import sys
import threading
import time

import pytest
import ray
import ray.cluster_utils

from raykb.runtime import nodes
from raykb.runtime.nodes import LIMIT, awaited
from raykb.runtime.resources import Node, Phase, ResourceError, WorkerResources, cluster, plan
from raykb.runtime.session import Refused

HEAD, GPU = Node(0.0, 0.0), Node(8.0, 1.0)
TRAININGS = Phase("trainings", 6, WorkerResources(cpus=8, gpus=1))
PAIRS = Phase("pairs", 1, WorkerResources(cpus=4, workers=2, side_by_side=1))


class Cloud:
    """A cluster that has, at each look, the nodes that the next entry of a list says."""

    def __init__(self, monkeypatch, counts):
        self.counts, self.asked, self.held, self.lines, self.now = list(counts), [], 0, [], 0.0
        monkeypatch.setattr(nodes, "cluster", self.cluster)
        monkeypatch.setattr(nodes, "ray", self)
        monkeypatch.setattr(nodes, "time", self)

    def cluster(self):
        count = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return [HEAD, *[GPU] * count]

    def remote(self, **options):
        """Decorate a task, or, as a method of one with its options, submit it."""
        if options:
            return lambda function: self
        self.held += 1
        return object()

    def options(self, *, num_cpus, num_gpus):
        self.asked.append((num_cpus, num_gpus))
        return self

    def cancel(self, place, force):
        assert force
        self.held -= 1

    def sleep(self, seconds):
        self.now += seconds

    def monotonic(self):
        return self.now


@pytest.fixture
def wait(monkeypatch):
    """Have a cloud, wait for the nodes of phases there; return nodes and cloud."""

    def waited(counts, phases, limit="900"):
        monkeypatch.setenv(LIMIT, limit)
        cloud = Cloud(monkeypatch, counts)
        found = awaited(phases, cloud.lines.append)
        assert cloud.held == 0  # all places are given back
        return found, cloud

    return waited


def test_nodes_are_asked_for_until_all_have_come_that_are_of_use(wait):
    found, cloud = wait([0, 0, 0, 2, 2, 6, 9], [TRAININGS, PAIRS])
    assert len(found) == 7
    assert cloud.asked == [(8, 1)] * 6 + [(4, 0.0)] * 2
    assert cloud.lines[0] == (
        "waiting up to 900 s for nodes, for 6 x 8 CPU and 1 GPU; 1 x 2 x (4 CPU); there is 1 node "
        "with 0 CPU"
    )
    assert cloud.lines[-1].startswith("goes on with 7 nodes with 0 CPU | 8 CPU and 1 GPU")
    assert plan([TRAININGS, PAIRS], found) == {"trainings": 6, "pairs": 1}


def test_those_that_have_come_are_enough_once_no_more_come(wait):
    found, cloud = wait([0, 0, 2], [TRAININGS])
    assert len(found) == 3
    assert nodes.SETTLED_S < cloud.now < nodes.SETTLED_S + 10
    assert plan([TRAININGS], found) == {"trainings": 2}


def test_where_too_few_come_the_plan_refuses_with_the_numbers_after_the_limit(wait):
    found, cloud = wait([0], [TRAININGS])
    assert 900 < cloud.now < 910
    assert len(cloud.lines) == 2 + 900 // 32  # a line each half minute
    with pytest.raises(ResourceError, match=r"one needs 8 CPU and 1 GPU.*\n.*1 node with 0 CPU"):
        plan([TRAININGS], found)


@pytest.mark.parametrize(("counts", "limit"), [([6], "900"), ([0], "0"), ([0], "")])
def test_nothing_is_asked_for_where_it_is_of_no_use_or_nobody_said_so(wait, counts, limit):
    found, cloud = wait(counts, [TRAININGS], limit)
    assert (len(found), cloud.asked, cloud.lines, cloud.now) == (1 + counts[0], [], [], 0)


@pytest.mark.parametrize("limit", ["-1", "nan", "soon"])
def test_a_limit_that_is_no_time_is_refused(wait, limit):
    with pytest.raises(Refused, match=rf"{LIMIT}: '{limit}', must be a number of seconds"):
        wait([0], [TRAININGS], limit)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_an_empty_cluster_goes_on_when_a_node_comes():
    """In a process of its own: this one has a Ray already."""
    environment = os.environ | {LIMIT: "200"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 nodes, 1 at once, nothing is held"


def main():
    """Wait on a cluster without a place; bring a node once the run waits."""
    brought = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    ray.init(address=brought.address, log_to_driver=False)
    phases, found, lines = [Phase("trainings", 1, WorkerResources())], [], []
    waiting = threading.Thread(target=lambda: found.extend(awaited(phases, lines.append)))
    waiting.start()
    while not lines:
        time.sleep(0.1)
    brought.add_node(num_cpus=1)
    waiting.join()
    while ray.available_resources().get("CPU", 0) < 1:  # until what held the place has ended
        time.sleep(0.1)
    at_once = plan(phases, cluster())["trainings"]
    print(f"{len(found)} nodes, {at_once} at once, nothing is held")
    ray.shutdown()
    brought.shutdown()


if __name__ == "__main__":
    main()
