"""The plan: what fits runs, what does not is refused with numbers."""

import pytest

from raykb.runtime.resources import (
    Group,
    Node,
    Phase,
    Plan,
    ResourceError,
    WorkerResources,
    fit,
    plan,
    this_host,
)


def phase(units=4, beside=None, **each):
    return Phase("theta trainings", units, WorkerResources(**each), beside)


@pytest.mark.parametrize(
    ("nodes", "each", "wanted"),
    [
        ([Node(2, 0)], {}, 2),
        ([Node(2, 0)], {"cpus": 2}, 1),
        ([Node(16, 0)], {}, 4),
        ([Node(16, 0)], {"side_by_side": 3}, 3),
        ([Node(3, 0), Node(3, 0)], {"cpus": 2}, 2),
        ([Node(8, 1)], {"gpus": 0.25}, 4),
        ([Node(8, 1)], {"gpus": 0.5}, 2),
        ([Node(8, 2)], {"gpus": 1}, 2),
        ([Node(2, 1), Node(2, 1)], {"workers": 2, "gpus": 1}, 1),
    ],
)
def test_as_many_as_fit_run_side_by_side(nodes, each, wanted):
    assert plan([phase(**each)], nodes) == {"theta trainings": wanted}


def test_what_must_run_beside_is_counted():
    data = {"data workers": WorkerResources(cpus=1, workers=2)}
    assert plan([phase(beside=data)], [Node(6, 0)]) == {"theta trainings": 2}
    with pytest.raises(ResourceError, match=r"one needs 1 CPU \+ 2 x \(1 CPU\) for data workers"):
        plan([phase(beside=data)], [Node(2, 0)])


def test_all_that_does_not_fit_is_named_with_numbers_and_the_remedy():
    phases = [
        phase(cpus=64),
        Phase("policy search", 2, WorkerResources(gpus=1)),
        Phase("final trainings", 2, WorkerResources()),
    ]
    with pytest.raises(ResourceError) as caught:
        plan(phases, [Node(2, 0)])
    assert str(caught.value) == (
        "this run needs more than the cluster has:\n"
        "  theta trainings: one needs 64 CPU\n"
        "  policy search: one needs 1 CPU and 1 GPU\n"
        "There is 1 node with 2 CPU. Lower `resources` (--set resources.…), or add nodes."
    )


def test_one_piece_never_spans_two_nodes():
    with pytest.raises(ResourceError, match=r"2 nodes with 2 CPU \| 2 CPU"):
        plan([phase(cpus=3)], [Node(2, 0), Node(2, 0)])


def test_this_host_has_a_processor():
    assert this_host()[0].cpus >= 1


@pytest.mark.parametrize(
    ("argument", "value"), [("cpus", 0), ("gpus", -1), ("workers", 0), ("side_by_side", 0)]
)
def test_resources_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument}: {value}, must be at least"):
        WorkerResources(**{argument: value})


@pytest.mark.parametrize(("count", "wanted"), [(1, True), (3, True), (4, False)])
def test_workers_fit_if_each_has_a_place_on_some_node(count, wanted):
    assert fit(count, WorkerResources(cpus=2), [Node(5, 0), Node(3, 0)]) is wanted


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("place", "everywhere", "must be 'pack' or 'spread'"),
        ("timeout_s", 0, "must be at least 1"),
        ("wait_s", -1.0, "must be at least 0"),
        ("fewer", (2, 0), "must be numbers from 1 on"),
    ],
)
def test_a_group_out_of_range_is_refused(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument}: .*{allowed}$"):
        Group(**{argument: value})


class Cluster:
    """Nodes and a clock that stand until they are changed."""

    def __init__(self, *nodes):
        self.nodes, self.now, self.said = list(nodes), 100.0, []

    def plan(self, *phases):
        return Plan(phases, say=self.said.append, look=self.there, clock=lambda: self.now)

    def there(self):
        return list(self.nodes)


def test_nodes_that_join_are_used_and_those_that_leave_are_not_and_both_is_said():
    cluster = Cluster(Node(2, 0))
    found = cluster.plan(phase())
    assert dict(found) == {"theta trainings": 2}
    cluster.nodes.append(Node(1, 0))
    assert found["theta trainings"] == 2  # nobody looks all the time
    cluster.now += 2.0
    assert found["theta trainings"] == 3
    del cluster.nodes[0]
    cluster.now += 2.0
    assert found["theta trainings"] == 1
    cluster.now += 2.0
    assert found["theta trainings"] == 1
    assert cluster.said == [
        "there is now 2 nodes with 2 CPU | 1 CPU; theta trainings: 3 at once",
        "there is now 1 node with 1 CPU; theta trainings: 1 at once",
    ]


def test_what_has_no_place_any_more_is_given_up_after_a_minute_unless_nodes_come_back():
    cluster = Cluster(Node(2, 0))
    found = cluster.plan(phase(cpus=2), Phase("small ones", 9, WorkerResources()))
    cluster.nodes = [Node(1, 0)]
    for _ in range(20):
        cluster.now += 3.0
        assert found["theta trainings"] == 1
    cluster.nodes = [Node(1, 0), Node(4, 0)]
    cluster.now += 3.0
    assert found["theta trainings"] == 2
    cluster.nodes = [Node(1, 0)]
    cluster.now += 61.0
    told = "^theta trainings: one needs 2 CPU, and for 61 s there was 1 node with 1 CPU; go on with"
    with pytest.raises(ResourceError, match=told):
        found["theta trainings"]
    assert found["small ones"] == 1


def test_a_group_waits_by_rules_of_its_own():
    cluster = Cluster(Node(2, 0))
    found = cluster.plan(phase(workers=2))
    cluster.nodes = []
    cluster.now += 1000.0
    assert found["theta trainings"] == 1
    assert cluster.said == ["there is now 0 nodes; theta trainings: 1 at once"]


def test_a_phase_of_nothing_has_nothing_side_by_side():
    cluster = Cluster(Node(2, 0))
    found = cluster.plan(phase(units=0))
    cluster.now += 2.0
    assert found["theta trainings"] == 0
