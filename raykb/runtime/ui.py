"""Where MLflow's UI shows a run: how it is opened, and the page with the charts of its trainings.

A page is a view that the experiment keeps as a tag, ``mlflow.sharedViewState.<name>``: which runs
it is of, by what they are grouped, which columns their table has, and which charts come first. The
UI reads it as JSON.

Left to itself, the UI of MLflow 3.17 makes a chart of each metric, in the order of their names, and
draws what has one step, as all that is measured at the end, as a dot.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from raykb.runtime.secrets import HIDDEN, redacted

TRAININGS = ("mlflow.experimentKind", "custom_model_development")
"""The tag of an experiment of trainings; without one the UI takes it for one of language models."""

_SERVERS = ("http://", "https://")
_COSTS = ("time/wall_s", "time/cpu_s", "time/gpu_s", "memory/peak_mib")
_RESULTS = "results"  # name of the section of the first charts
_SHOWN = 6  # metrics that have a bar and a curve
_LINE = {  # what the UI expects of a curve, as it writes it
    "type": "LINE",
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "scaleType": "linear",
    "range": {},
    "lineSmoothness": 0,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
_LOCAL = "http://127.0.0.1:5000"  # where ``mlflow ui`` listens


def is_served(uri: str) -> bool:
    """Return whether a store is behind a server, which has a UI of its own."""
    return uri.startswith((*_SERVERS, "databricks"))


def ui_command(uri: str) -> str:
    """Return the command that opens the UI on a database, or the address of a server."""
    if is_served(uri):
        return redacted(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(redacted(uri))}"


def view_tag(run_id: str, by: str, metrics: Sequence[str]) -> tuple[str, str]:
    """Return the tag of an experiment that makes a page of a run's children.

    Its first charts are bars of what is compared, the same over the steps, and what it cost; the UI
    hides those of metrics that no child has. Below are the metrics of each group, as ``train/``.

    Args:
        run_id: MLflow's, of the parent; the page is called by it.
        by: the parameter that groups them; those without it stand by themselves.
        metrics: those that are compared: columns of the table, and the first charts.
    """
    compared = metrics[:_SHOWN]
    on_the_way = [name.replace("test/", "valid/", 1) for name in compared if "test/" in name]
    charts = [*map(_bar, compared), *map(_line, [*on_the_way, "train/loss"]), *map(_bar, _COSTS)]
    view = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "orderByKey": "tags.`mlflow.runName`",  # by time the UI would add the parent to them
        "orderByAsc": True,
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "param", "groupByData": by}],
        },
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [f"params.`{by}`", *(f"metrics.`{name}`" for name in metrics)],
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "columns": columns}
            for name, columns in ((_RESULTS, 2), ("train", 3))
        ],
        "isAccordionReordered": True,  # or else the UI sorts the sections
    }
    return f"mlflow.sharedViewState.{run_id}", json.dumps(view, separators=(",", ":"))


def _bar(name: str) -> dict[str, Any]:
    """Return a chart of the last values of a metric."""
    place = {"uuid": f"{_RESULTS}/{name}", "metricSectionId": _RESULTS, "runsCountToCompare": 30}
    return {"type": "BAR", "metricKey": name, "displayName": name} | place


def _line(name: str) -> dict[str, Any]:
    """Return a chart of a metric over the steps."""
    return _bar(name) | _LINE


def page(uri: str, experiment_id: str, run_id: str) -> str | None:
    """Return the address of the page that :func:`view_tag` made; None where there is no such UI.

    Of a database it is the address that :func:`ui_command` serves.
    """
    if uri.startswith("databricks"):
        return None
    host = redacted(uri).replace(f"{HIDDEN}@", "") if uri.startswith(_SERVERS) else _LOCAL
    return (
        f"{host.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={run_id}"
    )
