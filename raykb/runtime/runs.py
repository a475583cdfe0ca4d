"""What a tracking store knows of runs: it is read here and never written."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from raykb.runtime.secrets import redacted
from raykb.runtime.sender import brief, sqlite_file

_PAGE = 1000
_PARENT = "mlflow.parentRunId"


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
    with _reading(uri) as client:
        return _read(client, [_id_of(client, experiment)], query)


def runs_of(uri: str, key: str) -> list[TrackedRun]:
    """Return the runs of one run directory: what its record's ``key`` names, then the children.

    Raises:
        ValueError: there is no such store.
        ConnectionError: the store does not answer.
    """
    with _reading(uri) as client:
        everywhere = [one.experiment_id for one in client.search_experiments()]
        own = _read(client, everywhere, f"tags.`raykb.key` LIKE '%/{key}'")
        below = [_read(client, everywhere, f"tags.`{_PARENT}` = '{each.id}'") for each in own]
        return own + [child for children in below for child in children]


def history(uri: str, run: TrackedRun, name: str) -> list[tuple[int, float]]:
    """Return steps and values of a run's metric, by step.

    Raises:
        ConnectionError: the store does not answer.
    """
    with _reading(uri) as client:
        return sorted((it.step, it.value) for it in client.get_metric_history(run.id, name))


@contextlib.contextmanager
def _reading(uri: str) -> Iterator[MlflowClient]:
    """Give a client of a store that is there, and have its errors name the store."""
    file = sqlite_file(uri)
    if file is not None and not file.exists():  # MLflow would make one
        raise ValueError(
            f"uri: {uri}: there is no such file, so no run was tracked there; name the store by "
            "--uri or MLFLOW_TRACKING_URI, or go to the folder that the runs were started in"
        )
    for variable, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
    ):
        os.environ.setdefault(variable, value)
    try:
        yield MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise ConnectionError(f"{redacted(uri)}: cannot be read: {brief(error)}") from error


def _query(status: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    parts = [f"attributes.status = '{status}'"]
    for kind, values in (("params", params), ("tags", tags)):
        for key, value in values.items():
            if set(key + value) & set("'\"`\\"):
                raise ValueError(f"{key}={value}: quotes and backslashes cannot be looked for")
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
    names: dict[str, str] = {}

    def name(run_id: str) -> str:
        if run_id not in names:
            names[run_id] = str(client.get_run(run_id).info.run_name)
        return names[run_id]

    runs = []
    for run in _pages(client, experiment_ids, query):
        parent = run.data.tags.get(_PARENT, run.info.run_id)
        runs.append(
            TrackedRun(
                run.info.run_id,
                str(run.info.run_name),
                name(parent),
                parent,
                run.info.start_time / 1e3,
                str(run.info.status),
                dict(run.data.params),
                dict(run.data.metrics),
                dict(run.data.tags),
            )
        )
    return runs


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
