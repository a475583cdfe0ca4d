"""A script that is run in this process does and says what one in a process of its own does."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import PIPELINES, run


def test_a_script_stands_in_its_folder_and_leaves_all_as_it_was(tmp_path):
    before, argv, environment = Path.cwd(), sys.argv, dict(os.environ)
    done = run("semi_train", tmp_path, "--dry-run")
    assert "method" in done.stdout
    assert (Path.cwd(), sys.argv, dict(os.environ)) == (before, argv, environment)


def test_a_refusal_has_the_status_and_the_words_of_a_process(tmp_path):
    script, arguments = "export_checkpoint", ["nowhere", "--out", "x.pt"]
    command = [sys.executable, str(PIPELINES / f"{script}.py"), *arguments]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    done = run(script, tmp_path, *arguments, status=1)
    assert dataclasses.astuple(done) == (process.returncode, process.stdout, process.stderr)
    assert "no checkpoints" in done.stderr


def test_a_returned_status_is_that_of_the_process(tmp_path):
    done = run("semi_train", tmp_path, "--set", "no.such=1", status=2)
    assert done.stderr.startswith("semi_train: ")


def test_a_status_that_is_not_the_expected_one_shows_what_was_said(tmp_path):
    with pytest.raises(AssertionError, match="no checkpoints"):
        run("export_checkpoint", tmp_path, "nowhere", "--out", "x.pt")
