"""Break each promise of promises.yaml in a copy of the tree, and see its tests fail.

    python tests/promises.py              # a minute or two, and a table of what came of it
    python tests/promises.py checkpoint   # those whose promise, file or test has this in it

A test that passes on the broken code proves nothing of its promise; such are named, and the exit
status is 1.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".yaml")
_COPIED = ("raykb", "pipelines", "clusters", "tests", "pyproject.toml", "README.md")
_FAILED, _PASSED = 1, 0  # pytest's exit status; any other says that it ran no test


class Promise(NamedTuple):
    """A change of the code, and what must fail with it."""

    promise: str
    file: str
    old: str
    new: str
    test: str

    def broken(self, text):
        """Return the text of the file with the change; ValueError where it does not fit."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: {self.old!r} is there {count} times, must be once")
        return text.replace(self.old, self.new)


def promises():
    """Return the list."""
    return [Promise(**row) for row in yaml.safe_load(LIST.read_text())]


def copied(folder):
    """Make a copy of what tests need; return its root."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def outcome(promise, tree):
    """Return ``fails`` where the tests do on the broken code, as they must; else what they do."""
    path = tree / promise.file
    whole = path.read_text()
    path.write_text(promise.broken(whole))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["--no-ratchet", "-m", "slow or not slow", *shlex.split(promise.test)]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(whole)
    if done.returncode == _FAILED:
        return "fails"
    if done.returncode == _PASSED:
        return "PASSES on the broken code"
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return f"DID NOT RUN (pytest ended with {done.returncode}: {' '.join(last)})"


def main():
    """Break what is asked for; return 0 if every test failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("only", nargs="?", default="", help="a part of promise, file or test")
    only = parser.parse_args().only
    found = [each for each in promises() if only in " ".join(each)]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="raykb-promises-") as folder:
        tree = copied(Path(folder))
        print("| promise | its test, with the promise broken |\n| --- | --- |")
        for promise in found:
            came = outcome(promise, tree)
            wrong += came != "fails"
            print(f"| {promise.promise} | `{promise.test}`: {came} |", flush=True)
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
