"""Scripts run in the process of the tests: what a new process would do, without its 30 CPU seconds.

A script's workers come from the Ray of ``warm_ray``, which its test asks for. What a signal, a
kill or an exit does needs a process of its own: ``pipelines/running.py``.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import sys
import traceback
import warnings
from pathlib import Path

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


@dataclasses.dataclass
class Done:
    """How a script ended; named as what :func:`subprocess.run` returns."""

    returncode: int
    stdout: str
    stderr: str


def run(script, folder, *arguments, status=0):
    """Run ``pipelines/<script>.py`` in ``folder`` to its end, which must have this status."""
    out, err = io.StringIO(), io.StringIO()
    argv = [str(PIPELINES / f"{script}.py"), *map(str, arguments)]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        _as_started(folder, argv),
    ):
        warnings.simplefilter("default")  # shown, as a process shows them
        code = _ended(script, argv[1:])
    done = Done(code, out.getvalue(), err.getvalue())
    assert done.returncode == status, done.stdout + done.stderr
    return done


def _ended(script, argv):
    """Return the status that Python would end with."""
    try:
        return importlib.import_module(script).main(argv) or 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _as_started(folder, argv):
    """Stand in the folder, with the command line, that a process would have been started with."""
    before, given, environment = Path.cwd(), sys.argv, dict(os.environ)
    os.chdir(folder)
    sys.argv = argv
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = given
        os.environ.clear()
        os.environ.update(environment)
