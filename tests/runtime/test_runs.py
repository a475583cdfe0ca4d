"""Runs are read from the tracking store as they are there."""

import json

import mlflow
import pytest
from databases import new_database

from raykb.runtime.runs import experiment_of, histories, pictures, run_in, tracked_runs

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    uri = new_database(tmp_path_factory.mktemp("store"))
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("one")

    def add(name, parent=None, status="FINISHED", **params):
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run = client.create_run(experiment, run_name=name, tags=tags | {"kind": name[:1]})
        for key, value in params.items():
            client.log_param(run.info.run_id, key.replace("_", "."), value)
        for step in range(3):
            client.log_metric(run.info.run_id, "test/top1", step / 4, step=step)
        client.set_terminated(run.info.run_id, status)
        return run.info.run_id

    parent = add("parent")
    add("a", parent, labels_count=40)
    add("b", parent, labels_count=250)
    add("broken", parent, status="FAILED", labels_count=40)
    return uri, parent


def test_a_run_comes_with_its_invocation_parameters_and_last_metrics(store):
    uri, parent = store
    runs = tracked_runs(uri, "one")
    assert [run.name for run in runs] == ["parent", "a", "b"]
    assert {run.invocation for run in runs} == {"parent"}
    assert {run.invocation_id for run in runs} == {parent}
    assert runs[1].params == {"labels.count": "40"}
    assert runs[1].metrics == {"test/top1": 0.5}
    assert 1.5e9 < runs[1].started_s < 5e9
    assert {run.status for run in runs} == {"FINISHED"}
    assert [run.status for run in tracked_runs(uri, "one", status="FAILED")] == ["FAILED"]


def test_runs_are_chosen_by_parameter_tag_and_status(store):
    uri, _ = store

    def names(**query):
        return [run.name for run in tracked_runs(uri, "one", **query)]

    assert names(params={"labels.count": "40"}) == ["a"]
    assert names(tags={"kind": "b"}) == ["b"]
    assert names(params={"labels.count": "40"}, status="FAILED") == ["broken"]
    assert names(params={"labels.count": "7"}) == []


def test_what_is_not_there_is_named(store, tmp_path):
    uri, _ = store
    with pytest.raises(ValueError, match=r"'two' is not there; the store has .*one"):
        tracked_runs(uri, "two")
    with pytest.raises(ValueError, match=r"none\.db: there is no such file"):
        tracked_runs(f"sqlite:///{tmp_path / 'none.db'}", "one")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="quotes and backslashes cannot be looked for"):
        tracked_runs(uri, "one", params={"a": "it's"})


def test_a_store_that_does_not_answer_is_an_error_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConnectionError, match=r"http://\*\*\*@127\.0\.0\.1:9: cannot be read"):
        tracked_runs("http://user:secret@127.0.0.1:9", "one")


def test_a_run_s_experiment_is_found_by_its_name_or_id(store):
    uri, parent = store
    assert experiment_of(uri, "parent") == experiment_of(uri, parent) == "one"
    assert experiment_of(uri, "nobody") is None


def test_the_history_of_runs_is_read_by_step(store):
    uri, _ = store
    a, b = tracked_runs(uri, "one")[1:]
    found = histories(uri, [a, b], ["test/top1", "test/none"])
    assert found.keys() == {a.id, b.id}
    assert found[a.id] == {"test/top1": [(0, 0.0), (1, 0.25), (2, 0.5)]}


def test_how_a_table_was_made_comes_with_the_trainings_unless_it_was_cut_short(store):
    uri, parent = store
    client = mlflow.MlflowClient(uri)
    for tag, told in (('{"rows": []}', {"rows": []}), ('{"seeds"', {}), ("[1]", {})):
        client.set_tag(parent, "raykb.compared", tag)
        assert [run.compared for run in tracked_runs(uri, "one")] == [told] * 3


def test_the_pictures_of_a_run_are_read_and_nothing_else(tmp_path):
    uri = new_database(tmp_path)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("own", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment).info.run_id
    assert pictures(uri, run) == {}
    for name in ("a.png", "b.md"):
        client.log_text(run, name, name)
    assert pictures(uri, run) == {"a.png": b"a.png"}


def test_a_run_directory_names_its_run_and_its_store(tmp_path):
    assert run_in(tmp_path) is None
    (tmp_path / "run.json").write_text(json.dumps({"key": "k", "tracking_uri": "sqlite:///x"}))
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "tracking.json").write_text(json.dumps({"ids": {"k": "abc"}}))
    assert run_in(tmp_path) == ("abc", "sqlite:///x")
    record = {"key": "k", "tracking_uri": None, "config": {"tracking": {"uri": "http://x"}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert run_in(tmp_path) == ("abc", "http://x")
    (tmp_path / "tracking" / "tracking.json").write_text(json.dumps({"ids": {}}))
    assert run_in(tmp_path) is None
