"""The script of test-time augmentation, in this process: what is done once, and what is refused."""

import dataclasses
import runpy

import here
import pytest
import running

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
