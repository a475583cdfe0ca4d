"""A script of two trainings that wait for each other's tests: at step 13, for a file ``go``."""

import functools
import sys
import types
from pathlib import Path

import ray
import shared_training

from raykb.runtime import head, job
from raykb.runtime.resources import Phase, WorkerResources
from raykb.runtime.work import TrainJob

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
NAMES = ("first", "second")


def build(worker, *, name, marks):
    node = ray.get_runtime_context().get_node_id()
    Path(marks, f"{name}-on-{node}").touch()
    return shared_training.build(worker, fault="wait", marks=marks)


def both(session, ready, marks):
    jobs = [TrainJob(name, build, {"name": name, "marks": marks}, 0) for name in NAMES]
    found = session.train_all("trainings", jobs)
    print(*(result.metrics["test/weight"] for result in found))


def main(marks, *argv):
    """Train both on the cluster of ``RAY_ADDRESS``."""
    head._LOOK_S, head._LOOKS = 0.5, 6
    script = functools.update_wrapper(functools.partial(both, marks=marks), both)
    script.__code__ = both.__code__
    ready = types.SimpleNamespace(phases=[Phase("trainings", 2, WorkerResources())])
    return job.launch(
        script,
        description="",
        default=Path(marks, "config.yaml"),
        schema={},
        prepare=lambda config: ready,
        argv=argv,
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
