"""Sends a tracker's records to MLflow in batches, in their order for each run."""

import contextlib
import fcntl
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raykb.later import Later
from raykb.runtime.secrets import redacted
from raykb.runtime.ui import TRAININGS, view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

mlflow = Later("mlflow")

_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # trying again is no use
_TRIES = 3  # to store an artifact, before it is passed over for the sake of what follows

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite URI, None for other URIs."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") else None


@dataclass
class _Batch:
    metrics: list["Metric"] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Sender:
    """Sends records to MLflow, in their order for each run.

    A record that MLflow refuses is named and passed over; any other failure is raised, and the
    same records are to be sent again.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: str | None) -> None:
        self._uri, self._experiment, self._artifact_root = uri, experiment, artifact_root
        self._client: MlflowClient | None = None
        self.experiment_id = ""
        self._warned: set[str] = set()
        self._failures: dict[str, int] = {}
        self.spool_id = ""
        self.ids: dict[str, str] = {}

    def send(self, records: Sequence[dict[str, Any]]) -> None:
        """Send records; when it returns, MLflow has them."""
        client = self._client or self._connect()
        batches: dict[str, _Batch] = {}
        for record in records:
            key = record.get("run", "")
            if record["op"] == "run":
                self._open(client, record)
            if key not in self.ids:  # the spool's own first line; or a full disk took the run's
                continue
            batch = batches.setdefault(key, _Batch())
            match record["op"]:
                case "log":
                    batch.metrics += [
                        mlflow.entities.Metric(name, value, record["at"], record["step"])
                        for name, value in record["metrics"].items()
                    ]
                case "params":
                    if batch.params.keys() & record["values"].keys():  # MLflow judges a change
                        self._flush(client, key, batch)
                        batch = batches[key] = _Batch()
                    batch.params |= record["values"]
                case "tags":
                    batch.tags |= record["values"]
                case "text" | "artifact" | "view" | "finish":
                    self._flush(client, key, batches.pop(key))
                    self._pass_on(client, record)
        for key, batch in batches.items():
            self._flush(client, key, batch)

    def disconnect(self) -> None:
        """Look for the experiment anew when next something is sent."""
        self._client = None

    def warn(self, what: str, why: str = "") -> bool:
        """Warn, once for each ``what``; return whether it was the first time."""
        first = what not in self._warned and len(self._warned) < 1000
        if first:
            self._warned.add(what)
            _logger.warning("tracking: %s%s", what, f": {why}" if why else "")
        return first

    def _connect(self) -> "MlflowClient":
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        file = sqlite_file(self._uri)
        with _alone(file.with_name(f"{file.name}.lock")) if file else contextlib.nullcontext():
            client: MlflowClient = mlflow.MlflowClient(tracking_uri=self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                root = self._artifact_root
                location = f"{root}/{self._experiment}" if root else None
                with contextlib.suppress(
                    mlflow.MlflowException
                ):  # another host was faster, or see below
                    client.create_experiment(self._experiment, artifact_location=location)
                experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                raise ConnectionError(f"experiment {self._experiment!r} cannot be created")
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            if TRAININGS[0] not in experiment.tags:  # a kind that a user chose stays
                with self._unless_refused(f"kind of the experiment {self._experiment!r}"):
                    client.set_experiment_tag(experiment.experiment_id, *TRAININGS)
        self._client, self.experiment_id = client, experiment.experiment_id
        return client

    def _open(self, client: "MlflowClient", record: dict[str, Any]) -> None:
        """Create a run, or set one that is there back to RUNNING."""
        key = record["run"]
        if key not in self.ids:
            tag = re.sub(r"['\"\\`]", "_", f"{self.spool_id}/{key}")
            query = f"tags.`raykb.key` = '{tag}'"
            found = client.search_runs([self.experiment_id], query, max_results=1)
            self.ids[key] = found[0].info.run_id if found else self._create(client, record, tag)
            if not found:
                return
        with self._unless_refused(f"run {key!r}"):
            client.update_run(self.ids[key], status="RUNNING", name=record["name"])

    def _create(self, client: "MlflowClient", record: dict[str, Any], tag: str) -> str:
        tags = {"raykb.key": tag}
        if record["parent"] in self.ids:
            tags["mlflow.parentRunId"] = self.ids[record["parent"]]
        run = client.create_run(
            self.experiment_id, start_time=record["at"], tags=tags, run_name=record["name"]
        )
        run_id: str = run.info.run_id
        return run_id

    def _flush(self, client: "MlflowClient", key: str, batch: _Batch) -> None:
        entities: tuple[tuple[str, Sequence[Any], int], ...] = (
            ("metrics", batch.metrics, 1000),
            ("params", [mlflow.entities.Param(*item) for item in batch.params.items()], 100),
            ("tags", [mlflow.entities.RunTag(*item) for item in batch.tags.items()], 100),
        )
        for kind, items, count in entities:
            for chunk in _chunks(items, count):
                self._submit(client, key, kind, chunk)

    def _submit(self, client: "MlflowClient", key: str, kind: str, items: list[Any]) -> None:
        """Send one batch; of a refused one all that is good, found by halving."""
        try:
            client.log_batch(self.ids[key], **{kind: items})  # type: ignore[arg-type]
        except mlflow.MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            if len(items) > 1:
                half = len(items) // 2
                self._submit(client, key, kind, items[:half])
                self._submit(client, key, kind, items[half:])
            else:
                self.warn(f"{kind} {items[0].key!r} of run {key!r} refused", brief(error))

    def _pass_on(self, client: "MlflowClient", record: dict[str, Any]) -> None:
        """Store an artifact, keep a view or end a run."""
        op, run_id = record["op"], self.ids[record["run"]]
        if op == "view":
            with self._unless_refused(f"view of run {record['run']!r}"):
                tag = view_tag(run_id, record["by"], record["metrics"])
                client.set_experiment_tag(self.experiment_id, *tag)
            return
        if op == "finish":
            with self._unless_refused(f"end of run {record['run']!r}"):
                client.set_terminated(run_id, record["status"], record["at"])
            return
        what = record.get("path") or record["name"]
        try:
            if op == "text":
                client.log_text(run_id, record["text"], record["name"])
            elif Path(what).is_dir():
                client.log_artifacts(run_id, what, record["folder"] or None)
            else:
                client.log_artifact(run_id, what, record["folder"] or None)
        except Exception as error:
            client.get_run(run_id)  # raises where it is MLflow that is away, not the artifact
            self._failures[what] = self._failures.get(what, 0) + 1
            if self._failures[what] < _TRIES and (op == "text" or Path(what).exists()):
                raise
            self.warn(f"artifact {what} of run {record['run']!r} not stored", brief(error))

    @contextlib.contextmanager
    def _unless_refused(self, what: str) -> Iterator[None]:
        try:
            yield
        except mlflow.MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            self.warn(f"{what} refused", brief(error))


def _chunks(items: Sequence[_T], count: int, size: int = 100_000) -> Iterator[list[_T]]:
    """Yield items in lists of up to ``count``, and of few enough characters for one request."""
    chunk: list[_T] = []
    length = 0
    for item in items:
        weight = len(str(getattr(item, "value", "")))
        if chunk and (len(chunk) == count or length + weight > size):
            yield chunk
            chunk, length = [], 0
        chunk.append(item)
        length += weight
    if chunk:
        yield chunk


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file: processes that create the same database at once break it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def brief(error: BaseException) -> str:
    """Return what an error says, in one line without secrets."""
    text = " ".join(redacted(str(error)).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
