"""Files of the run directory that workers make side by side, each once.

    jobs ─▶ those whose key is not in the ledger ─▶ workers ─▶ file, then a line of the ledger

A file counts when the ledger has its name with its key, and stands for what it was made of: where
that is another, as after a training more, the file is made again.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from raykb.runtime.progress import Progress
from raykb.runtime.resources import WorkerResources
from raykb.runtime.session import OnFailure, Session

LEDGER = "files.jsonl"


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """One file to be made.

    Attributes:
        name: of the file below the run directory.
        make: ``make(**arguments)`` returns what is in it; called in a worker.
        arguments: what ``make`` gets.
        key: stands for all that the file is made of.
    """

    name: str
    make: Callable[..., bytes]
    arguments: dict[str, Any]
    key: str


def make_files(
    session: Session,
    phase: str,
    jobs: Sequence[FileJob],
    *,
    each: WorkerResources,
    on_failure: OnFailure = "stop",
) -> list[str]:
    """Have workers make files; return the names of those that are missing afterwards.

    Args:
        session: the run.
        phase: its name in the plan, which says how many are made at once.
        jobs: the files.
        each: what making one takes.
        on_failure: ``stop`` at the first file that cannot be made; with ``hole`` it is missing, and
            the others are made.
    """
    if not jobs:
        return []
    made = {record["name"]: record["key"] for record in session.storage.records(LEDGER)}
    waiting = [job for job in jobs if made.get(job.name) != job.key or not _is_there(session, job)]
    before, missing = len(jobs) - len(waiting), list[str]()
    pool = ThreadPoolExecutor(session.parallel[phase])
    try:
        with Progress(phase, len(jobs), "files") as progress:
            progress.update(before, before=before)
            running = {
                pool.submit(session.machine.call, _made, job, resources=each): job
                for job in waiting
            }
            for done, future in enumerate(as_completed(running), before + 1):
                job = running[future]
                if (error := future.exception()) is None:
                    session.storage.write(job.name, future.result())
                    session.storage.append(LEDGER, {"name": job.name, "key": job.key})
                elif on_failure == "stop" or not isinstance(error, Exception):
                    raise error
                else:
                    missing.append(job.name)
                    session.storage.remove(job.name)  # an older one would pass for it
                    told = f"{type(error).__name__}: {error}"
                    session.say(f"{job.name}: failed, the others go on: {told}")
                progress.update(done, before=before)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    session.holes += missing
    return [job.name for job in jobs if job.name in missing]


def _is_there(session: Session, job: FileJob) -> bool:
    return session.storage.exists(job.name)


def _made(job: FileJob) -> bytes:
    return job.make(**job.arguments)
