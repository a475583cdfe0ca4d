"""How MLflow's UI is opened, and where in it a run's trainings are."""

import pytest

from raykb.runtime.ui import page, ui_command


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("sqlite:////x/mlflow.db", "mlflow ui --backend-store-uri sqlite:////x/mlflow.db"),
        ("sqlite:////a b/m.db", "mlflow ui --backend-store-uri 'sqlite:////a b/m.db'"),
        ("http://me:secret@host:5000", "http://***@host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_the_ui_s_command_or_address(uri, command):
    assert ui_command(uri) == command


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("sqlite:////x/mlflow.db", "http://127.0.0.1:5000"),
        ("postgresql://me:secret@host/db", "http://127.0.0.1:5000"),
        ("http://me:secret@host:5000", "http://host:5000"),
        ("https://host/mlflow/", "https://host/mlflow"),
    ],
)
def test_a_page_is_on_the_server_or_on_this_host_and_its_address_can_be_opened(uri, host):
    assert page(uri, "7", "abc") == (
        f"{host}/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
        "&viewStateShareKey=abc"
    )


def test_databricks_has_pages_of_its_own():
    assert page("databricks", "7", "abc") is None
