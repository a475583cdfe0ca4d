"""How MLflow's UI is opened, and where in it a run's trainings are."""

import json

import pytest

from raykb.runtime.ui import page, ui_command, view_tag


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


def charts_of(metrics):
    view = json.loads(view_tag("abc", "label", metrics)[1])
    sections = [section["uuid"] for section in view["compareRunSections"]]
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == {sections[0]}
    return [(chart["type"], chart["metricKey"]) for chart in view["compareRunCharts"]]


def test_the_first_charts_are_what_is_compared_over_the_steps_and_what_it_cost():
    assert charts_of(["test/top1", "pseudo_labels/correct"]) == [
        ("BAR", "test/top1"),
        ("BAR", "pseudo_labels/correct"),
        ("LINE", "valid/top1"),
        ("LINE", "train/loss"),
        ("BAR", "time/wall_s"),
        ("BAR", "time/cpu_s"),
        ("BAR", "time/gpu_s"),
        ("BAR", "memory/peak_mib"),
    ]


def test_a_page_of_many_metrics_is_no_longer_than_a_tag_may_be():
    metrics = [f"test/{number}/{'x' * 200}" for number in range(20)]
    tag = view_tag("abc", "label", metrics)[1]
    assert len(tag) < 20_000  # MLflow's limit
    assert sum(kind == "BAR" for kind, _ in charts_of(metrics)) == 6 + 4
    assert len({chart["uuid"] for chart in json.loads(tag)["compareRunCharts"]}) == 6 + 6 + 1 + 4
