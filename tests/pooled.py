"""Trainings of several workers in the pool of gloo, without the processes that Ray Train starts.

Each worker runs the very code that it runs on Ray (``raykb.runtime.work``); what Ray Train adds to
it, ``runtime/test_group.py`` shows. A group on Ray costs 15 CPU seconds, most of them imports.
"""

import dataclasses
import types

import here
import torch.distributed as dist
from gloo_pool import POOL

from raykb.engine.loop import Worker
from raykb.runtime import work
from raykb.runtime.mailbox import Letter
from raykb.runtime.train import finished


def train(jobs, *, storage, parallel, on_letter, on_result, **others):
    """Run trainings one after the other; what one raises is raised with its traceback."""
    results = []
    for job in jobs:
        letters, *_ = POOL.run(_member, job, storage.uri, size=job.resources.workers)
        for letter in letters:
            on_letter(letter)
        results.append(finished(storage, job.name, job.until))
        on_result(results[-1])
    return results


def _member(job, uri):
    """Be one worker of a training; return its letters."""
    letters = []

    def put(letter):
        if not isinstance(letter, Letter):  # else the worker would wait for Ray to have taken it
            raise LookupError("failures are raised by the pool")
        letters.append(letter)

    mailbox = types.SimpleNamespace(put=types.SimpleNamespace(remote=put))
    worker = Worker(dist.get_rank(), dist.get_world_size())
    work.run(job, uri, worker, mailbox, saved=lambda step: None)
    return letters


POOLED = dataclasses.replace(here.HERE, train=train)
