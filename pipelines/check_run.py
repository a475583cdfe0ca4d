"""Say whether what a run left agrees: its files with each other, and with the tracking store."""

import argparse
import sys
from pathlib import Path

USAGE = """
Each line says of one invariant whether it holds; where it does not, what is wrong, where, and what
to do. Of a run that is under way the files that are done are judged alone. Nothing is changed, but
by --clean and --close, which are refused while a process holds the run directory.

exit status: 0 all holds, 3 something does not, 2 there is no such run or store

examples:
  check_run.py runs/semi_train-20261121-120000
  check_run.py runs/semi_train-20261121-120000 --close --clean    it was killed, and shall not go on
  check_run.py s3://bucket/run --uri http://mlflow:5000
"""
EXIT_REFUSED, EXIT_BROKEN = 2, 3


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python pipelines/check_run.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="run directory, or a folder in it; a path or a URI")
    add("--uri", help="of the MLflow store (default: that of the run, or MLFLOW_TRACKING_URI)")
    add("--files", action="store_true", help="judge the files alone; ask no MLflow store")
    add("--clean", action="store_true", help="remove what writers that died left half written")
    add("--close", action="store_true", help="end as KILLED what MLflow has as RUNNING")
    given = parser.parse_args(arguments)
    if given.files and (given.uri or given.close):
        parser.error("--files: asks no store, so give neither --uri nor --close")
    return given


if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    parse(None)  # --help, before the imports below take their seconds

from raykb.runtime.checking import INVARIANTS, check
from raykb.runtime.closing import clean, close
from raykb.runtime.left import uri_of
from raykb.runtime.lock import holder
from raykb.runtime.run_files import opened, run_of
from raykb.runtime.secrets import redacted
from raykb.runtime.session import Refused


def report(given: argparse.Namespace) -> tuple[list[str], bool]:
    """Do what is asked; return what to print, and whether all holds."""
    run = run_of(opened(given.directory))
    uri = None if given.files else uri_of(run, given.uri)
    lines = [f"closed {name}" for name in (close(run, uri) if given.close and uri else [])]
    lines += [f"removed {name}" for name in (clean(run) if given.clean else [])]
    under_way = holder(run)
    found = check(run, tracking_uri=uri, under_way=bool(under_way))
    for name, each in INVARIANTS.items():
        told = [f"{name} does not hold: {it}" for it in found if it.invariant == name]
        if each.at_rest and under_way:
            told = [f"{name} is not judged: {each.text}: {under_way}"]
        elif each.tracked and uri is None:
            told = [f"{name} is not judged: {each.text}: no store is asked"]
        lines += told or [f"{name} holds: {each.text}"]
    return lines, not found


def main(arguments: list[str] | None = None) -> int:
    """Check, and say what holds; return the exit status."""
    try:
        lines, well = report(parse(arguments))
    except (ValueError, OSError, Refused) as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        return EXIT_REFUSED
    print(redacted("\n".join(lines)))
    return 0 if well else EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main())
