"""The command line that all scripts that launch runs have in common; it imports next to nothing."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Options = Mapping[str, tuple[str, str]]
"""A script's own options by name, without dashes: of each what stands for its value, and the help.

They are short for what ``--set`` can say, too; which that is, the script tells ``launch``.
"""


def parser(name: str, description: str, options: Options | None = None) -> argparse.ArgumentParser:
    """Return the parser of the script ``name``, which ``description`` is about."""
    parser = argparse.ArgumentParser(
        prog=f"python pipelines/{name}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without --config the run is the script's small one; --dry-run shows it. A cluster "
        "is used if RAY_ADDRESS names one or `ray start` runs on this host; else a local Ray is "
        "started. Exit status: 0, or 1 for a run that failed, 2 for one that is refused, 3 where "
        "trainings failed and left holes (comparison.on_failure), 128 and more for a signal.",
    )
    add = parser.add_argument
    for own, (metavar, text) in (options or {}).items():
        add(f"--{own}", metavar=metavar, help=text)
    add("--config", metavar="FILE", help="YAML file of the run (see pipelines/configs)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change any argument of any section, e.g. --set search.width=200; may be repeated",
    )
    add("--smoke", action="store_true", help="apply the file's `smoke:` part: minutes, no download")
    add(
        "--dry-run",
        action="store_true",
        help="print plan and resolved config; start and download nothing",
    )
    add("--out", metavar="DIR", help="run directory, a path or URI; it must be empty")
    add("--resume", metavar="DIR", help="go on with the run in DIR from where it stopped")
    return parser


def answer(
    file: str,
    description: str | None,
    argv: Sequence[str] | None = None,
    *,
    options: Options | None = None,
) -> None:
    """Answer ``--help`` and refuse wrong options, before a script imports what takes seconds.

    Args:
        file: the script's own.
        description: its docstring.
        argv: the command line after the script's name.
        options: the script's own.
    """
    given = sys.argv[1:] if argv is None else argv
    parser(Path(file).stem, description or "", options).parse_args(given)
