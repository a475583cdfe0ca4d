"""What a run has left is found from any place in it, by its files and never by names."""

import ast
import json
import re
import shutil
import types
from pathlib import Path

import pytest

from raykb.runtime import run_files
from raykb.runtime.left import uri_of
from raykb.runtime.run_files import (
    checkpoints,
    config_of,
    final_weights,
    name_below,
    opened,
    run_of,
)
from raykb.runtime.storage import LocalStorage, RemoteStorage


def test_a_store_whose_password_no_record_keeps_is_taken_from_the_environment(
    tmp_path, monkeypatch
):
    config = {"tracking": {"uri": "postgresql://***@host/runs"}}
    record = {"key": "k", "tracking_uri": None, "config": config}
    (tmp_path / "run.json").write_text(json.dumps(record))
    run = LocalStorage(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI to the whole of it"):
        uri_of(run)
    assert uri_of(run, "http://other") == "http://other"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/runs")
    assert uri_of(run) == "postgresql://me:secret@host/runs"


def make_run(folder, *trainings, record=True, weights=True, saved=True):
    """Write a run directory with trainings that have weights and checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in trainings:
        (folder / name).mkdir(parents=True)
        if weights:
            (folder / name / "final.pt").touch()
        if saved:
            (folder / name / "step-00000004").mkdir()
    if record:
        (folder / "run.json").write_text(json.dumps({"config": {"seed": 3}}))
    return folder


def refused(call, *arguments):
    with pytest.raises(ValueError, match=r".+") as caught:
        call(*arguments)
    return str(caught.value)


def uris(found):
    return [storage.uri for storage in found]


# ---------------------------------------------------------------------- from a place


@pytest.mark.parametrize("name", ["", "theta", "fold-0/theta", "a/b/seed 1"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_run_its_training_and_the_weights_lead_to_the_same(tmp_path, name, scheme):
    run = make_run(tmp_path / "run?x", *([name] if name else []))
    training = run / name
    if not name:
        (run / "final.pt").touch()
        (run / "step-00000004").mkdir()
    for place in dict.fromkeys((run, training, training / "final.pt")):
        assert uris(final_weights(f"{scheme}{place}")) == [str(run), str(training)]
        assert checkpoints(f"{scheme}{place}/").uri == str(training)


def test_a_relative_path_is_of_this_folder_and_a_tilde_of_home(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "seed-0")
    monkeypatch.chdir(run)
    monkeypatch.setenv("HOME", str(tmp_path))
    for where in ("seed-0", "seed-0/final.pt", ".", "~/run"):
        assert uris(final_weights(where)) == [str(run), str(run / "seed-0")]


class Bucket(RemoteStorage):
    """A folder of this host, told as a bucket; its query must reach every folder of it."""

    top = ""

    def __init__(self, uri):
        assert uri.endswith("?region=x")
        self._bucket = re.match(r"s3://(me:abc@)?bucket(?=[/?])", uri)[0]
        super().__init__(uri.replace(self._bucket, f"file://{self.top}"))

    @property
    def uri(self):
        return super().uri.replace(f"file://{self.top}", self._bucket)

    def below(self, name):
        return Bucket(super().below(name).uri.replace(f"file://{self.top}", self._bucket))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "top", str(tmp_path))
    monkeypatch.setattr(run_files, "open_storage", Bucket)
    return tmp_path


@pytest.mark.parametrize("place", ["run", "run/", "run/uda/seed-0", "run/uda/seed-0/final.pt"])
def test_a_query_goes_along_in_a_bucket(bucket, place):
    make_run(bucket / "run", "uda/seed-0")
    run, training = final_weights(f"s3://bucket/{place}?region=x")
    assert run.uri == "s3://bucket/run?region=x"
    assert training.uri == "s3://bucket/run/uda/seed-0?region=x"
    assert checkpoints(f"s3://bucket/{place}?region=x").uri == training.uri


@pytest.mark.parametrize(
    ("run", "training"),
    [
        ("/tmp/run?x", "/tmp/run?x/a/b/seed 1"),
        ("s3://bucket/run?region=x", "s3://bucket/run/a/b/seed%201?region=x"),
    ],
)
def test_a_training_has_its_name_below_the_run(run, training):
    folders = [types.SimpleNamespace(place=place) for place in (run, training)]
    assert name_below(*folders) == "a/b/seed 1"


def test_trainings_are_found_as_deep_as_one_asks(tmp_path):
    run = make_run(tmp_path / "run", "a/b/c/seed-0")
    for within, found in ((3, []), (4, [str(run / "a/b/c/seed-0")])):
        storages = run_files.trainings(
            LocalStorage(run), lambda it: it.exists("final.pt"), within=within
        )
        assert uris(storages) == found


def test_no_password_of_a_bucket_is_in_an_error(bucket):
    run = "s3://me:abc@bucket/run?region=x"
    for call in (final_weights, checkpoints):
        make_run(bucket / "run", "a/seed-0", "b/seed-0")
        text = refused(call, run)
        assert text.startswith("s3://***@bucket/run?region=x: ")
        assert "abc" not in text
        shutil.rmtree(bucket / "run")
        assert "abc" not in refused(call, run)
    make_run(bucket / "run").joinpath("run.json").write_text("{}")
    assert "abc" not in refused(config_of, opened(run))


def test_nothing_is_above_a_bucket(bucket):
    make_run(bucket / "run", "seed-0", record=False)
    text = refused(final_weights, "s3://bucket/run/seed-0?region=x")
    assert "s3://bucket/run/seed-0?region=x: there is no run.json in it or above it" in text


# ---------------------------------------------------------------------- several, none


@pytest.mark.parametrize("call", [final_weights, checkpoints])
def test_of_many_trainings_some_are_named_and_the_others_counted(tmp_path, call):
    names = [f"method-{number:02}/seed-0" for number in range(14)]
    run = make_run(tmp_path / "run", *names)
    text = refused(call, str(run))
    assert "14 trainings" in text
    assert re.findall(r"method-\d\d/seed-0", text) == names[:10]
    assert text.endswith("and 4 more")


def test_trainings_of_unlike_depth_and_odd_names_are_all_found(tmp_path):
    names = ("seed-0", "fold-0/theta", "a/b/seed-1", "step by step", "run.json.d")
    run = make_run(tmp_path / "run", *names)
    found = run_files.trainings(opened(str(run)), lambda storage: storage.exists("final.pt"))
    assert sorted(uris(found)) == sorted(str(run / name) for name in names)


def test_what_is_not_there_is_said_with_what_to_do(tmp_path):
    run = make_run(tmp_path / "run", "seed-0", weights=False, saved=False)
    assert "0 trainings have left a final.pt; let the run end" in refused(final_weights, str(run))
    assert "no checkpoints are in it; name a run directory" in refused(checkpoints, str(run))
    assert "no checkpoints are in it" in refused(checkpoints, str(tmp_path / "never"))
    assert "no run.json in it or above it" in refused(final_weights, str(tmp_path / "never"))
    assert "storage: 'ftp://a/b'" in refused(opened, "ftp://a/b")
    assert "is relative" in refused(opened, "file://run")


def test_checkpoints_need_no_record(tmp_path):
    run = make_run(tmp_path / "run", "seed-0", record=False)
    assert checkpoints(str(run)).uri == str(run / "seed-0")


# ---------------------------------------------------------------------- links


def test_a_training_counts_once_and_under_its_own_path_whatever_links_lead_to_it(tmp_path):
    run = make_run(tmp_path / "run", "uda/seed-0")
    (run / "again").symlink_to(run)
    (run / "latest").symlink_to(run / "uda" / "seed-0")
    (run / "a").mkdir()
    (run / "a" / "before").symlink_to(run / "uda")
    (run / "lost").symlink_to(run / "nowhere")
    assert uris(final_weights(str(run))) == [str(run), str(run / "uda" / "seed-0")]
    assert checkpoints(str(run)).uri == str(run / "uda" / "seed-0")


def test_trainings_on_another_disk_are_of_the_run_that_links_to_them(tmp_path):
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "disk" / "deep", "uda/seed-0", record=False)
    (run / "uda").symlink_to(tmp_path / "disk" / "deep" / "uda")
    for place in ("run", "run/uda", "run/uda/seed-0"):
        found = final_weights(str(tmp_path / place))
        assert uris(found) == [str(run), str(run / "uda" / "seed-0")]


def test_a_link_leads_further_than_the_folder_itself_where_that_is_too_deep(tmp_path):
    run = make_run(tmp_path / "run", "a/b/c/seed-0")
    assert "0 trainings" in refused(final_weights, str(run))
    (run / "short").symlink_to(run / "a" / "b" / "c")
    assert final_weights(str(run))[1].uri == str(run / "short" / "seed-0")


def test_a_link_to_a_training_knows_the_run_of_that_training(tmp_path):
    run = make_run(tmp_path / "run", "uda/seed-0")
    link = tmp_path / "best"
    link.symlink_to(run / "uda" / "seed-0")
    assert uris(final_weights(str(link))) == [str(run), str(link)]
    assert uris(final_weights(str(link / "final.pt"))) == [str(run), str(link)]


# ---------------------------------------------------------------------- the record


def test_the_record_is_looked_for_no_further_up_than_trainings_can_be(tmp_path):
    run = make_run(tmp_path / "run")
    deep = run / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    assert run_of(opened(str(deep.parent))).uri == str(run)
    assert "no run.json" in refused(run_of, opened(str(deep)))


@pytest.mark.parametrize("name", [run_files.RECORD, run_files.CONFIG, run_files.FINAL])
def test_a_file_of_a_run_is_named_in_one_place(name):
    homes = [
        path.name
        for path in Path(run_files.__file__).parents[1].rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == name
    ]
    assert homes == ["run_files.py"]


def test_the_nearest_record_counts(tmp_path):
    make_run(tmp_path / "run", "inner/seed-0")
    shutil.copy(tmp_path / "run" / "run.json", tmp_path / "run" / "inner")
    run, _ = final_weights(str(tmp_path / "run" / "inner" / "seed-0"))
    assert run.uri == str(tmp_path / "run" / "inner")


def test_a_record_gives_its_configuration_or_is_named_as_none(tmp_path):
    storage = LocalStorage(make_run(tmp_path / "run"))
    assert config_of(storage) == {"seed": 3}
    for data in (b"", b"\xff", b"hello", b"{}", b"[]", b'{"config": [1]}', b'{"config": null}'):
        storage.write("run.json", data)
        assert "run.json: is not the record of a run" in refused(config_of, storage)


def test_a_training_has_the_configuration_of_its_own_or_the_runs(tmp_path):
    run = LocalStorage(make_run(tmp_path / "run", "slim/seed-0"))
    training = run.below("slim/seed-0")
    assert config_of(run, training) == {"seed": 3}
    training.write("config.json", b'{"seed": 4}')
    assert config_of(run, training) == {"seed": 4}
    assert config_of(run) == {"seed": 3}
    for data in (b"", b"\xff", b"[]", b"null"):
        training.write("config.json", data)
        text = refused(config_of, run, training)
        assert f"{training.uri}/config.json: is not the configuration of a training" in text
