"""What a pipeline reached, as it is printed."""

from raykb.report.stages import reached

METRICS = {"test/top1": 0.75, "pipeline/bubble": 0.5, "memory/worker-1/peak_mib": 3.25}


def test_figures_stand_in_order_and_memory_beside_what_was_predicted():
    bubble, top1, first, second = reached(METRICS, [1.0, 2.0], gpus=False).splitlines()
    assert bubble.split() == ["pipeline/bubble", "0.5"]
    assert top1.split() == ["test/top1", "0.75"]
    assert first == "worker 0: 1.0 MiB predicted, 0.0 MiB more resident memory at most"
    assert second == "worker 1: 2.0 MiB predicted, 3.2 MiB more resident memory at most"


def test_of_a_gpu_it_is_its_own_memory():
    assert "3.2 MiB of its GPU at most" in reached(METRICS, [1.0, 2.0], gpus=True)
