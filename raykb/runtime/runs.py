"""What a tracking store knows of runs: it is read here and never written."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from raykb.engine.foreign import parsed
from raykb.runtime.run_files import RECORD, tracking_of
from raykb.runtime.secrets import redacted
from raykb.runtime.sender import brief, sqlite_file
from raykb.runtime.tracking import COMPARED

_PAGE = 1000
_PARENT = "mlflow.parentRunId"
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrackedRun:
    """A run in the tracking store.

    Attributes:
        id: MLflow's.
        name: as MLflow shows it.
        invocation: name of the parent run, which is that of the run directory; its own without one.
        invocation_id: MLflow's id of that.
        started_s: since 1970.
        status: how it ended, as ``FINISHED`` or ``FAILED``.
        params: as text, by dotted key.
        metrics: the last value of each.
        tags: as text.
        compared: what the table of its invocation was made of beside the trainings: ``settings``
            (``over``, ``subject``, ``metrics``, ``labels``, ``seeds``) and ``rows`` that are means
            of others; empty where there is no table.
    """

    id: str
    name: str
    invocation: str
    invocation_id: str
    started_s: float
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    compared: dict[str, Any]


def tracked_runs(
    uri: str,
    experiment: str,
    *,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    status: str = "FINISHED",
) -> list[TrackedRun]:
    """Return the runs of an experiment, parents and children, those that began first at first.

    Args:
        uri: as :func:`raykb.runtime.tracking.resolve_uri` returns it.
        experiment: its name.
        params: values that runs must have.
        tags: values that runs must have.
        status: that runs must have.

    Raises:
        ValueError: there is no such store or experiment, or a value cannot be looked for.
        ConnectionError: the store does not answer.
    """
    query = _query(status, params or {}, tags or {})
    return _asked(uri, lambda client: _read(client, [_id_of(client, experiment)], query))


def runs_of(uri: str, key: str) -> list[TrackedRun]:
    """Return the runs of one run directory: what its record's ``key`` names, then the children.

    Raises:
        ValueError: there is no such store.
        ConnectionError: the store does not answer.
    """

    def find(client: MlflowClient) -> list[TrackedRun]:
        everywhere = [one.experiment_id for one in client.search_experiments()]
        own = _read(client, everywhere, f"tags.`raykb.key` LIKE '%/{key}'")
        below = [_read(client, everywhere, f"tags.`{_PARENT}` = '{each.id}'") for each in own]
        return own + [child for children in below for child in children]

    return _asked(uri, find)


def history(uri: str, run: TrackedRun, name: str) -> list[tuple[int, float]]:
    """Return steps and values of a run's metric, by step, each as often as it was logged.

    Raises:
        ConnectionError: the store does not answer.
    """

    def read(client: MlflowClient) -> list[tuple[int, float]]:
        return sorted((it.step, it.value) for it in client.get_metric_history(run.id, name))

    return _asked(uri, read)


def experiment_of(uri: str, run: str) -> str | None:
    """Return the experiment of the newest run of this name or MLflow's id; None without one.

    Raises:
        ValueError: there is no such store, or the name cannot be looked for.
        ConnectionError: the store does not answer.
    """
    _refuse_quotes("run", run)

    def find(client: MlflowClient) -> str | None:
        places = {each.experiment_id: str(each.name) for each in client.search_experiments()}
        for kind in ("run_name", "run_id"):
            found = client.search_runs([*places], f"attributes.{kind} = '{run}'", max_results=1)
            if found:
                return places[found[0].info.experiment_id]
        return None

    return _asked(uri, find)


def run_in(folder: Path) -> tuple[str, str | None] | None:
    """Return MLflow's id of the run in a run directory, and the store that the record names.

    None where the folder is none, or nothing of its run has reached MLflow.
    """
    try:
        record = parsed((folder / RECORD).read_bytes())
        state = parsed((folder / "tracking" / "tracking.json").read_bytes())
        return state["ids"][record["key"]], tracking_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def histories(
    uri: str, runs: Sequence[TrackedRun], names: Sequence[str]
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return steps and values by run's id and metric, by step; without those that a run has not.

    Raises:
        ConnectionError: the store does not answer.
    """

    def read(client: MlflowClient, run: TrackedRun, name: str) -> list[tuple[int, float]]:
        points = client.get_metric_history(run.id, name)
        return sorted({point.step: point.value for point in points}.items())

    return _asked(
        uri,
        lambda client: {
            run.id: {name: read(client, run, name) for name in names if name in run.metrics}
            for run in runs
        },
    )


def pictures(uri: str, run_id: str) -> dict[str, bytes]:
    """Return the PNG files that a run has at the top of its artifacts, by name.

    Raises:
        ConnectionError: the store, or that of the artifacts, does not answer.
    """

    def read(client: MlflowClient) -> dict[str, bytes]:
        names = [file.path for file in client.list_artifacts(run_id) if file.path.endswith(".png")]
        with tempfile.TemporaryDirectory() as folder:
            return {
                name: Path(client.download_artifacts(run_id, name, folder)).read_bytes()
                for name in names
            }

    return _asked(uri, read)


def _asked(uri: str, question: Callable[[MlflowClient], _T]) -> _T:
    """Return what a store that exists answers, without long patience."""
    file = sqlite_file(uri)
    if file is not None and not file.exists():  # MLflow would make one
        raise ValueError(
            f"uri: {uri}: there is no such file, so no run was tracked there; name the store by "
            "--uri or MLFLOW_TRACKING_URI, or go to the folder that the runs were started in"
        )
    for variable, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(variable, value)
    try:
        return question(MlflowClient(tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise ConnectionError(f"{redacted(uri)}: cannot be read: {brief(error)}") from error


def _refuse_quotes(key: str, value: str) -> None:
    if set(key + value) & set("'\"`\\"):
        raise ValueError(f"{key}={value}: quotes and backslashes cannot be looked for")


def _query(status: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    parts = [f"attributes.status = '{status}'"]
    for kind, values in (("params", params), ("tags", tags)):
        for key, value in values.items():
            _refuse_quotes(key, value)
            parts.append(f"{kind}.`{key}` = '{value}'")
    return " and ".join(parts)


def _id_of(client: MlflowClient, experiment: str) -> str:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        there = sorted(one.name for one in client.search_experiments())
        raise ValueError(
            f"experiment: {experiment!r} is not there; the store has {', '.join(there) or 'none'}"
        )
    return str(found.experiment_id)


def _read(client: MlflowClient, experiment_ids: list[str], query: str) -> list[TrackedRun]:
    parents: dict[str, Run] = {}
    runs = []
    for run in _pages(client, experiment_ids, query):
        parent = run.data.tags.get(_PARENT, run.info.run_id)
        if parent not in parents:
            parents[parent] = client.get_run(parent)
        runs.append(
            TrackedRun(
                run.info.run_id,
                str(run.info.run_name),
                str(parents[parent].info.run_name),
                parent,
                run.info.start_time / 1e3,
                str(run.info.status),
                dict(run.data.params),
                dict(run.data.metrics),
                dict(run.data.tags),
                _compared(parents[parent]),
            )
        )
    return runs


def _compared(parent: Run) -> dict[str, Any]:
    """Return what the tag says; nothing where a store cut it short."""
    try:
        told = parsed(parent.data.tags.get(COMPARED, "{}"))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _pages(client: MlflowClient, experiment_ids: list[str], query: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs(
            experiment_ids,
            query,
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return
