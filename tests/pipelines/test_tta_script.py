"""The script of test-time augmentation: what is done once, what is refused, and a kill."""

import dataclasses
import json
import runpy
import signal

import here
import in_process
import pytest
import running
import torch
from databases import new_database

from raykb.runtime.checking import check
from raykb.runtime.left import uri_of
from raykb.runtime.storage import LocalStorage
from raykb.runtime.tracking import replay

SCRIPT = runpy.run_path(str(running.PIPELINES / "tta.py"))
PATH = running.PIPELINES / "configs" / "augment" / "tta_fashion_mnist_sample.yaml"


def run(folder, config, fails_after=1000):
    """Run the script with a worker that is lost after so many pieces; return what was made."""
    made = []

    def call(function, job, resources):
        if len(made) == fails_after:
            raise ConnectionError("the worker is gone")
        made.append(job.name)
        return function(job)

    session = here.session(folder, config)
    session.machine = dataclasses.replace(here.HERE, call=call)
    SCRIPT["tta"](session, SCRIPT["prepare"](config))
    return made


def test_a_run_that_was_stopped_goes_on_at_the_next_piece_and_ends_alike(tmp_path):
    small = ["data.train_size=40", "comparison.seeds=1", "selection.corruptions=[fog, contrast]"]
    config = here.resolved(SCRIPT, PATH, *small)
    whole = run(tmp_path / "whole", config)
    with pytest.raises(ConnectionError):
        run(tmp_path / "stopped", config, fails_after=2)
    rest = run(tmp_path / "stopped", config)
    assert len(rest) == len(whole) - 2
    assert set(rest) < set(whole)
    results = [(tmp_path / name / "results.md").read_text() for name in ("whole", "stopped")]
    assert results[0] == results[1]
    assert run(tmp_path / "stopped", config) == []

    own = tmp_path / "whole" / "target" / "seed-0" / "final.pt"
    given = here.resolved(SCRIPT, PATH, *small, f"target.weights={own}")
    assert set(run(tmp_path / "given", given)) == set(whole)  # those of the same network
    assert not (tmp_path / "given" / "target").exists()
    assert (tmp_path / "given" / "results.md").read_text() == results[0]


def test_all_that_is_wrong_is_refused_at_once():
    wrong = ["target.weights=nowhere.pt", "target.model={name: wide_resnet, depth: 11, width: 1}"]
    config = here.resolved(SCRIPT, PATH, *wrong, "recipe.steps=3", "recipe.epochs=null")
    with pytest.raises(ValueError, match=r"target.model.*depth") as error:
        SCRIPT["prepare"](config)
    assert "nowhere.pt" in str(error.value)


def made(directory):
    """Return what a run made: its tables as they are, weights, and what it told."""
    pieces = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.npz")}
    weights = {
        f"{path.parent.relative_to(directory)} {name}": value.tolist()
        for path in directory.rglob("final.pt")
        for name, value in torch.load(path, weights_only=True).items()
    }
    return pieces, weights, json.loads((directory / "results.json").read_text())["tables"]


@pytest.mark.slow
@pytest.mark.timeout(2 * running.LIMIT_S)
# MLflow's own use of SQLAlchemy
@pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")
def test_killed_in_the_middle_of_its_tables_it_ends_as_if_nothing_had_happened(warm_ray, tmp_path):
    small = ["data.train_size=40", "comparison.seeds=1", "selection.corruptions=[fog, contrast]"]
    small.append("selection.chunk=1")  # 83 pieces, so that some are left whenever the kill comes
    here.run(SCRIPT, "tta", here.resolved(SCRIPT, PATH, *small), tmp_path / "whole")
    wanted = made(tmp_path / "whole")
    assert len(wanted[0]) == 83

    new_database(tmp_path)
    directory = tmp_path / "killed"
    ledger = directory / "files.jsonl"
    status, _ = running.stopped(
        "tta",
        tmp_path,
        "--smoke",
        *(f"--set={change}" for change in small),
        "--out",
        directory,
        when=lambda: ledger.exists() and ledger.read_text().count("\n") > 4,
        number=signal.SIGKILL,
    )
    assert status == -signal.SIGKILL
    assert 4 < ledger.read_text().count("\n") < 83
    assert not list(directory.glob("*_four/seed-0/result.json"))
    in_process.run("tta", tmp_path, "--resume", directory)
    assert made(directory) == wanted
    told = [json.loads(line)["name"] for line in ledger.read_text().splitlines()]
    assert sorted(told) == sorted(wanted[0])  # each was made once
    assert replay(directory / "tracking") == 0  # what a busy machine did not send in time
    left = LocalStorage(directory)
    assert check(left, tracking_uri=uri_of(left)) == []
