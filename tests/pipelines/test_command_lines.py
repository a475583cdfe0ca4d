"""A script answers ``--help``, and refuses wrong options, before it imports what takes seconds."""

import subprocess
import sys

import pytest
import running

SCRIPTS = sorted(path.stem for path in running.PIPELINES.glob("*.py"))
# runs a script as Python would, and tells which modules not of Python itself this has imported
TELL = """
import runpy, sys
before = set(sys.modules)
sys.argv.pop(0)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    tops = {name.partition(".")[0] for name in set(sys.modules) - before}
    print("imported", *sorted(tops - set(sys.stdlib_module_names)))
"""

REFUSALS = """
import runpy, sys
for path in {paths}:
    sys.argv = [path, "{argument}"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        print(end.code, *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def answered(script, *arguments, status):
    """Return what a script says, and what it has imported of raykb and of other packages."""
    path = str(running.PIPELINES / f"{script}.py")
    command = [sys.executable, "-c", TELL, path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=running.LIMIT_S)
    assert done.returncode == status, done.stderr
    *said, imported = done.stdout.splitlines()
    return "\n".join(said) + done.stderr, set(imported.split()[1:])


def test_all_scripts_are_there():
    assert {"semi_train", "predict", "prepare_data"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_given_without_packages(script):
    said, imported = answered(script, "--help", status=0)
    assert "usage: " in said
    assert f"pipelines/{script}.py" in said
    assert imported <= {"raykb"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_options_are_refused_without_packages(script):
    said, imported = answered(script, "--nonsense", status=2)
    assert "error: " in said
    assert imported <= {"raykb"}


def test_the_help_of_a_data_set_needs_no_package_either():
    said, imported = answered("prepare_data", "image_folder", "--help", status=0)
    assert "--test-fraction X" in said
    assert imported <= {"raykb"}


def test_the_device_is_chosen_when_torch_is_there():
    said, _ = answered("predict", "--help", status=0)
    assert "(default: cuda where there is a GPU)" in " ".join(said.split())


TRAINING = ("decathlon", "fastaa_search", "gpipe_train", "nas_search", "semi_train")
SLOW = {"mlflow", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "optuna"}
SLOW |= {"monai", "nibabel"}


def test_a_wrong_config_is_refused_without_the_packages_that_only_a_run_needs():
    """All scripts in one process, since each imports torch: what none has imported, no one has."""
    paths = [str(running.PIPELINES / f"{script}.py") for script in TRAINING]
    code = REFUSALS.format(paths=paths, argument="--set=schedule.name=cosin")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("did you mean 'cosine'?") == len(TRAINING)
    told = [line.split() for line in done.stdout.splitlines()]
    assert [status for status, *_ in told] == ["2"] * len(TRAINING)
    for script, (_, *imported) in zip(TRAINING, told, strict=True):
        assert "torch" in imported
        assert not SLOW & set(imported), script
