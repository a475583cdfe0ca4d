"""Where MLflow's UI shows a run: how it is opened, and the page with the charts of its trainings.

A page is a view that the experiment keeps as a tag, ``mlflow.sharedViewState.<name>``: which runs
it is of, by what they are grouped, and which columns their table has. The UI reads it as JSON.
"""

import json
import shlex
from collections.abc import Sequence

from raykb.runtime.secrets import HIDDEN, redacted

TRAININGS = ("mlflow.experimentKind", "custom_model_development")
"""The tag of an experiment of trainings; without one the UI takes it for one of language models."""

_SERVERS = ("http://", "https://")
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

    Args:
        run_id: MLflow's, of the parent; the page is called by it.
        by: the parameter that groups them; those without it stand by themselves.
        metrics: columns of the table.
    """
    view = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "param", "groupByData": by}],
        },
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [f"params.`{by}`", *(f"metrics.`{name}`" for name in metrics)],
    }
    return f"mlflow.sharedViewState.{run_id}", json.dumps(view)


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
