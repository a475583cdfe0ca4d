"""One logger on MLflow that a training never waits for and that never stops one.

::

    run.log ──1──▶ tracking.jsonl ──2──▶ thread ──3──▶ MLflow
                                            └─4─▶ tracking.json: how far it has got, ids of runs

A call appends a line to the spool (1) and returns. A thread reads the spool (2), sends in batches
(3) and then notes how far it has got (4). The spool is the queue: nothing waits in memory, and
after a crash, with a new process on the same spool, the thread goes on where (4) says. What ran
at the crash is KILLED then, until it is asked for again.

What is sent twice, since a process died between (3) and (4), arrives once. A point carries the
time of its call and MLflow keeps equal points once; a run carries its key as the tag
``raykb.key``, and is looked for before it is created. A metric is logged once per step, the first
value counts: a training that resumes from an earlier step repeats what is already there.

While a server is down or slow, sending is tried again with growing pauses. What is still unsent
at the end stays in the spool: ``python -m raykb.runtime.tracking SPOOL`` sends it.

The tracker lives in the driver; workers report to the driver. It takes run ids, never MLflow's
active run, and of MLflow's variables heeds ``MLFLOW_TRACKING_URI`` and those of HTTP requests,
whose time-out and retries it sets short where the user has not set them.
"""

import argparse
import contextlib
import functools
import getpass
import importlib.metadata
import logging
import math
import numbers
import operator
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from raykb.engine.foreign import parsed
from raykb.runtime.secrets import HIDDEN, document, hidden, redacted
from raykb.runtime.sender import Sender, brief, sqlite_file
from raykb.runtime.spool import Spool, Steps
from raykb.runtime.ui import is_served, page

Status = Literal["FINISHED", "FAILED", "KILLED"]
LABEL = "label"  # parameter of a training: which entry of a comparison it is of
COMPARED = "raykb.compared"  # tag of a run: what its table is made of beside its trainings
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "databricks")

_FLUSH_S = 1.0  # how long a point may wait for others to share its batch
_BACK_OFF_S = (1.0, 60.0)  # pauses after failures: the first, the longest
_TAG = 5000  # characters of a tag; some stores take no more
_CUT = "\n\n…"
_NOTE = _TAG - len(_CUT)

_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


# ---------------------------------------------------------------------- where runs are kept


def default_uri(launch_dir: Path) -> str:
    """Return the URI of ``mlflow.db`` in a folder."""
    return f"sqlite:///{launch_dir.absolute() / 'mlflow.db'}"


def resolve_uri(configured: str | None = None, *, launch_dir: Path | None = None) -> str:
    """Return the absolute tracking URI: the configured one, else the environment's, else default.

    Args:
        configured: what the config says; null or empty for none.
        launch_dir: where a relative sqlite file and the default are; by default the cwd.

    Raises:
        ValueError: the URI is none that runs can be kept at.
    """
    folder = (launch_dir or Path.cwd()).absolute()
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    uri = configured or environment
    if not uri:
        return default_uri(folder)
    source = "tracking uri" if configured else "MLFLOW_TRACKING_URI"
    scheme, separator, rest = uri.partition("://")
    if uri != "databricks" and not (separator and scheme.split("+")[0] in SCHEMES):
        raise ValueError(
            f"{source}: {redacted(uri)!r}, must begin with one of {', '.join(SCHEMES)}. MLflow "
            f"keeps no runs in plain folders any more: write {default_uri(folder)}, and take old "
            "runs over with 'mlflow migrate-filestore'"
        )
    if scheme != "sqlite":
        return uri
    path, mark, query = rest.removeprefix("/").partition("?")
    if path in ("", ":memory:"):
        raise ValueError(f"{source}: {uri!r} names no file; write {default_uri(folder)}")
    return f"sqlite:///{folder / path}{mark}{query}"


def _artifact_root(uri: str, given: str | None) -> str | None:
    """Return where an experiment's artifacts are, absolute; None for where the server says."""
    if given and "://" not in given:
        return str(Path(given).absolute())
    if given or is_served(uri):
        return given
    file = sqlite_file(uri)
    return str((file.parent if file else Path.cwd()) / "mlartifacts")


# ---------------------------------------------------------------------- what is written


def _value(key: str, value: Any, length: int) -> str:
    plain = value if isinstance(value, Mapping | list | tuple) else str(value)
    return str(hidden(plain, key))[:length]


def tracked_name(key: Any) -> str:
    """Return a key that MLflow takes: letters, digits, ``_ - . space : /``, and a proper path."""
    parts = re.sub(r"[^\w\-. :/]", "_", str(key)).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:250] or "_"


def _number(value: Any) -> float | None:
    """Return a number, numpy scalar or one-element tensor as float; None for all else."""
    try:
        if callable(item := getattr(value, "item", None)):
            value = item()
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            return float(value)
    except (ValueError, RuntimeError, TypeError, OverflowError):
        pass
    return None


def environment_tags() -> dict[str, str]:
    """Return what a run should tell of where it came from; what cannot be had is left out."""
    script = Path(sys.argv[0]).absolute()
    folder = script.parent if script.is_file() else Path.cwd()
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    tags = {"host": socket.gethostname(), "script": script.name, "mlflow.source.name": str(script)}
    with contextlib.suppress(OSError, KeyError):  # a user id without a name, in a container
        tags["mlflow.user"] = getpass.getuser()
    if commit:
        tags |= {"git.commit": commit, "git.dirty": str(bool(changes)).lower()}
        tags["mlflow.source.git.commit"] = commit
    for package in ("raykb", "ray", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            tags[f"{package}.version"] = importlib.metadata.version(package)
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# ---------------------------------------------------------------------- what a script uses


def _contained(
    method: Callable[Concatenate["Run", _P], None],
) -> Callable[Concatenate["Run", _P], None]:
    """Let nothing out of a call: what tracking cannot do is told once and is no reason to stop."""

    @functools.wraps(method)
    def call(run: "Run", /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(run, *args, **kwargs)
        except Exception as error:
            run.tracker._warn(f"{method.__name__} of run {run.key!r}: {brief(error)}")

    return call


@dataclass(frozen=True)
class Run:
    """A run of a :class:`Tracker`. No call raises, and none waits for a server.

    Attributes:
        key: its name in the spool; the same key on the same spool is the same run.
        tracker: the tracker it belongs to.
    """

    key: str
    tracker: "Tracker"

    def id(self, timeout_s: float = 0.0) -> str | None:
        """Return MLflow's id, waiting for it up to ``timeout_s``; None while it has none."""
        return self.tracker._wait(lambda: self.tracker._sender.ids.get(self.key), timeout_s)

    @_contained
    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Log metrics at a step: finite numbers, numpy scalars, tensors of one element.

        A number that is not finite is not logged as a metric; the first one of each name becomes
        the tag ``raykb.nonfinite.<name>``. All else is passed over, with one warning a name.
        """
        values: dict[str, float] = {}
        for given, value in figures.items():
            name, number = tracked_name(given), _number(value)
            if name != given:
                self.tracker._warn(f"metric {given!r}: no name for MLflow; logged as {name!r}")
            if number is None:
                what = type(value).__name__
                self.tracker._warn(f"metric {given!r}: {what} is no number; not logged")
            elif math.isfinite(number):
                values[name] = number
            elif self.tracker._warn(f"{given!r} of run {self.key!r}: not finite; not logged"):
                self.tags({f"raykb.nonfinite.{name}": f"{number} at step {step}"})
        if abs(operator.index(step)) >= 2**63:
            raise ValueError(f"step: {step}, must fit 64 bits")
        self.tracker._log(self.key, operator.index(step), values)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Return steps and values of each metric that this host has logged, by step.

        Those of earlier processes on the spool are among them, whether they were sent or not.
        """
        points: dict[str, dict[int, float]] = {}
        for record in self.tracker._spool.records():
            if record["op"] == "log" and record["run"] == self.key:
                for name, value in record["metrics"].items():
                    points.setdefault(name, {}).setdefault(record["step"], value)
        return {name: sorted(found.items()) for name, found in points.items()}

    @_contained
    def params(self, values: Mapping[str, Any]) -> None:
        """Set parameters; MLflow keeps the first value of each."""
        self._set("params", values, 6000)

    @_contained
    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; the last value of each counts."""
        self._set("tags", values, _TAG)

    def _set(self, op: str, values: Mapping[str, Any], length: int) -> None:
        texts = {
            tracked_name(key): _value(str(key), value, length) for key, value in values.items()
        }
        if texts:
            self.tracker._write(op, run=self.key, values=texts)

    @_contained
    def note(self, text: str) -> None:
        """Set the text, Markdown, that is on the run's page; what is too long ends at a line."""
        if len(text) > _NOTE:
            text = text[: text.rindex("\n", 0, _NOTE) if "\n" in text[:_NOTE] else _NOTE] + _CUT
        self.tags({"mlflow.note.content": text})

    @_contained
    def view(self, by: str, metrics: Sequence[str] = ()) -> None:
        """Keep a page of the run's children for the UI, which :meth:`page` is the address of.

        Args:
            by: the parameter by which charts and table put them together.
            metrics: columns of the table.
        """
        names = [tracked_name(metric) for metric in metrics]
        self.tracker._write("view", run=self.key, by=tracked_name(by), metrics=names)

    def page(self) -> str | None:
        """Return the address of the page of the run's children; None while it has none."""
        run_id, experiment_id = self.id(), self.tracker._sender.experiment_id
        if run_id is None or not experiment_id:
            return None
        return page(self.tracker.uri, experiment_id, run_id)

    @_contained
    def artifact(self, path: str | Path, folder: str = "") -> None:
        """Store a file or a folder, which must stay where it is until it has been sent."""
        place = str(Path(path).absolute())
        self.tracker._write(
            "artifact", run=self.key, path=place, folder=folder and tracked_name(folder)
        )

    @_contained
    def text(self, text: str, name: str) -> None:
        """Store a text as the file ``name``, without the secrets in it."""
        self.tracker._write("text", run=self.key, text=document(text), name=tracked_name(name))

    @_contained
    def finish(self, status: Status = "FINISHED") -> None:
        """Set how the run ended."""
        self.tracker._write("finish", run=self.key, status=status)

    @_contained
    def _start(
        self,
        name: str | None,
        parent: "Run | None",
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
    ) -> None:
        self.tracker._write(
            "run", run=self.key, name=name or self.key, parent=parent.key if parent else None
        )
        self.tags(tags)
        self.params(params)


class Tracker:
    """Keeps the runs of one invocation in MLflow.

    Args:
        uri: as :func:`resolve_uri` returns it.
        experiment: name of the experiment; made if there is none, brought back if deleted.
        spool: a local folder of this invocation alone; the same one again to resume it. With
            another ``uri`` all of it is sent there.
        artifact_root: folder or URI for the artifacts of a new experiment; by default
            ``mlartifacts`` beside the database, and for a server where the server says.
        backlog_mib: unsent data beyond which metrics, and only metrics, are dropped.
        patience_s: how long to wait for another process to leave the spool.

    Raises:
        ValueError: bad arguments.
        RuntimeError: another process uses the spool.
        OSError: the spool cannot be written.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        *,
        spool: Path,
        artifact_root: str | None = None,
        backlog_mib: float = 256.0,
        patience_s: float = 0.0,
    ) -> None:
        if tracked_name(experiment) != experiment:
            raise ValueError(
                f"experiment: {experiment!r}, must be 1 to 250 letters, digits, '_-. :', and '/' "
                f"between parts; for example {tracked_name(experiment)!r}"
            )
        if not backlog_mib > 0:
            raise ValueError(f"backlog_mib: {backlog_mib}, must be above 0")
        uri = resolve_uri(uri)
        for variable, value in (
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),  # the thread tries again by itself
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
            ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ):
            os.environ.setdefault(variable, value)
        self.uri = uri
        self._sender = Sender(uri, experiment, _artifact_root(uri, artifact_root))
        self._warn = self._sender.warn
        self._spool = Spool(spool.absolute(), patience_s=patience_s)
        self._backlog = int(backlog_mib * 2**20)
        self._steps: dict[tuple[str, str], Steps] = {}
        self._running: dict[str, None] = {}
        self._dropped = 0
        self._state = {"uri": redacted(uri), "experiment": experiment, "root": artifact_root}
        self._sent = self._recall()
        self._moved = threading.Condition()
        self._urgent = False
        self._deadline: float | None = None  # when the thread gives up; none before close()
        self._remaining: int | None = None
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        self._thread.start()

    def _recall(self) -> int:
        """Take up what an earlier process has left, and return how far it was sent.

        Runs that it did not end, since it was killed, ended with its last record.
        """
        state, going_on, last = self._spool.state(), dict[str, None](), 0
        for record in self._spool.records():
            last = record.get("at", last)
            if record["op"] == "run":
                going_on[record["run"]] = None
            elif record["op"] == "finish":
                going_on.pop(record["run"], None)
            if record["op"] == "spool":
                self._sender.spool_id = record["id"]
            elif record["op"] == "log":
                for name in record["metrics"]:
                    self._is_new(record["run"], name, record["step"])
        if not self._sender.spool_id:
            self._sender.spool_id = uuid.uuid4().hex
            self._spool.append({"op": "spool", "id": self._sender.spool_id})
        for key in reversed(going_on):  # children before their parent
            self._spool.append({"op": "finish", "at": last, "run": key, "status": "KILLED"})
        self._state["spool"] = self._sender.spool_id
        same = all(state.get(key) == self._state[key] for key in ("uri", "experiment", "spool"))
        self._sender.ids |= state["ids"] if same else {}
        sent = int(state["sent"]) if same else 0
        self._spool.note({**self._state, "sent": sent, "ids": self._sender.ids})
        return sent

    def run(
        self,
        key: str,
        *,
        name: str | None = None,
        parent: Run | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> Run:
        """Return the run ``key``: a new one, or that of before, which is RUNNING again.

        Args:
            key: what it is in this invocation, ``final/seed-2``.
            name: as MLflow shows it; by default the key.
            parent: the run it belongs to.
            params: the flattened config; on children as well, for MLflow's comparisons.
            tags: :func:`environment_tags`, data set, phase and others.
        """
        run = Run(key, self)
        run._start(name, parent, params or {}, tags or {})
        return run

    def ready(self, timeout_s: float = 60.0) -> bool:
        """Wait until all asked so far is in MLflow; return False if ``timeout_s`` is not enough."""
        target = self._spool.written
        return self._wait(lambda: self._sent >= target or None, timeout_s) is not None

    def close(self, status: Status = "FINISHED", *, wait_s: float = 10.0) -> int:
        """End what still runs, send what is unsent, and return how many records remain unsent.

        Args:
            status: of the runs that have not been finished.
            wait_s: how long to wait for MLflow.
        """
        for key in reversed(list(self._running)):
            Run(key, self).finish(status)
        with self._moved:
            if self._deadline is not None:
                return self._remaining or 0
            self._deadline = time.monotonic() + wait_s
            self._moved.notify_all()
        self._thread.join(wait_s)
        with self._moved:
            if self._remaining is None:
                self._remaining = self._unsent()
        if self._remaining:
            folder = shlex.quote(str(self._spool.log.parent))
            self._warn(
                f"{self._remaining} records are kept that {redacted(self.uri)} did not take; "
                f"send them with: python -m raykb.runtime.tracking {folder}"
            )
        if self._dropped:
            self._warn(f"{self._dropped} points were dropped: see backlog_mib")
        return self._remaining

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self.close("FINISHED" if error is None else failed)

    # What follows is for Run and the thread.

    def _write(self, op: str, **record: Any) -> None:
        with self._moved:
            if self._deadline is not None:
                self._warn(f"{op} after close(); not logged")
                return
            self._spool.append({"op": op, "at": int(time.time() * 1000), **record})
            if op == "run":
                self._running[record["run"]] = None
                self._urgent = True
                self._moved.notify_all()
            elif op == "finish":
                self._running.pop(record["run"], None)

    def _log(self, key: str, step: int, values: Mapping[str, float]) -> None:
        with self._moved:
            if self._spool.written - self._sent > self._backlog:
                self._dropped += len(values)
                self._warn(f"{self._spool.log} is full of unsent data; metrics are dropped")
                return
            fresh = {name: v for name, v in values.items() if self._is_new(key, name, step)}
        if fresh:
            self._write("log", run=key, step=step, metrics=fresh)

    def _is_new(self, key: str, name: str, step: int) -> bool:
        return self._steps.setdefault((key, name), Steps()).add(step)

    def _wait(self, value: Callable[[], _T | None], timeout_s: float) -> _T | None:
        with self._moved:
            self._urgent = True
            self._moved.notify_all()
            self._moved.wait_for(lambda: value() is not None, timeout_s)
            return value()

    def _unsent(self) -> int:
        return sum(1 for _ in self._spool.records(self._sent))

    def _serve(self) -> None:
        """Send what is written, until closed and done or out of time; the thread's body."""
        pause = 0.0
        while True:
            closing = self._deadline is not None
            try:
                self._send_all()
                if pause:
                    _logger.warning("tracking: %s answers again", redacted(self.uri))
                pause = 0.0
            except Exception as error:
                self._sender.disconnect()
                if not pause:
                    _logger.warning(
                        "tracking: %s does not answer (%s); the run goes on, what it logs is kept "
                        "in %s and sent when it answers again",
                        *(redacted(self.uri), brief(error), self._spool.log),
                    )
                pause = min(max(2 * pause, _BACK_OFF_S[0]), _BACK_OFF_S[1])
            if not self._rest(pause, closing):
                break
        with self._moved:
            self._remaining = self._unsent()
            self._spool.close()

    def _rest(self, pause: float, closing: bool) -> bool:
        """Wait until there is more to do; return False where the thread is to end."""
        with self._moved:
            if closing and self._deadline is not None:
                pause = min(pause, _BACK_OFF_S[0])
                if not pause or time.monotonic() + pause > self._deadline:
                    return False
            self._moved.wait_for(
                lambda: (self._deadline is not None) > closing or (self._urgent and not pause),
                pause or _FLUSH_S,
            )
            self._urgent = False
            return True

    def _send_all(self) -> None:
        while True:
            records, end = self._spool.read(self._sent)
            if end == self._sent:
                return
            self._sender.send(records)
            self._spool.note({**self._state, "sent": end, "ids": self._sender.ids})
            with self._moved:
                self._sent = end
                self._moved.notify_all()


# ---------------------------------------------------------------------- sending later


def replay(spool: Path, *, uri: str | None = None, wait_s: float = 60.0) -> int:
    """Send what a run has left in its spool, and return how many records remain unsent.

    Args:
        spool: the folder that the run's tracker was given.
        uri: where to; by default where the run wanted it.
        wait_s: how long to wait for MLflow.

    Raises:
        ValueError: no spool, or a URI whose password only the run knew.
        RuntimeError: the run is still going on.
    """
    try:
        state = parsed((spool / "tracking.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"spool: {spool} is not the spool of a run ({brief(error)})") from error
    uri = uri or state["uri"]
    if HIDDEN in uri:
        raise ValueError(f"uri: {uri!r} is without its password; give it whole, with --uri")
    tracker = Tracker(uri, state["experiment"], spool=spool, artifact_root=state["root"])
    return tracker.close(wait_s=wait_s)


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m raykb.runtime.tracking",
        description="Send what a run could not send to MLflow while it ran.",
    )
    parser.add_argument("spool", type=Path, help="folder that holds tracking.jsonl")
    parser.add_argument("--uri", help="where to; by default where the run wanted it")
    parser.add_argument("--wait-s", type=float, default=60.0, help="how long to wait for MLflow")
    given = parser.parse_args(arguments)
    try:
        left = replay(given.spool, uri=given.uri, wait_s=given.wait_s)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    print(f"{left} records remain" if left else "all is sent")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(_main())
