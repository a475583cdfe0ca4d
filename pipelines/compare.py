"""Compare tracked runs: mean and standard deviation over seeds, and paired differences."""

import argparse
import sys
from pathlib import Path

USAGE = """
Trainings are put together by a parameter, as 'label', and paired by another, as 'seed_number': the
same number means the same labelled images, initial weights and order of images. Of several finished
trainings with one label and one number the newest counts; where there are none, one that failed is
a gap in the table. The interval is Student's, of the mean of the paired differences, at 95 %; a
difference is one only if its interval leaves out 0.

examples:
  compare.py                                           the methods of semi_train.py
  compare.py --run semi_train-20261121-120000 --list   those of one run directory, each training
  compare.py --where labels.count=40 --against fixmatch --csv table.csv
  compare.py --experiment fast-autoaugment --by augmentation --metric test/top1
"""
LABEL, METHOD = "label", "method"  # what names a compared training, and did in older runs
DEFAULT = ("test/top1", "pseudo_labels/correct")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python pipelines/compare.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--uri",
        help="of the MLflow store (default: MLFLOW_TRACKING_URI, or mlflow.db in this folder)",
    )
    add("--experiment", default="semi-supervised", metavar="NAME", help="(default: %(default)s)")
    add(
        "--run",
        action="append",
        default=[],
        metavar="NAME",
        help="only trainings of this run directory, by its name or MLflow's id; may be repeated",
    )
    for name, what in (("--where", "parameter"), ("--tag", "tag")):
        add(
            name,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"only trainings with this {what}; may be repeated",
        )
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help=f"what is compared; may be repeated (default: {' and '.join(DEFAULT)})",
    )
    add(
        "--by",
        metavar="PARAM",
        help=f"what is compared (default: {LABEL}, or {METHOD} where no training has that)",
    )
    add(
        "--seed",
        default="seed_number",
        metavar="PARAM",
        help="what pairs trainings (default: %(default)s)",
    )
    add("--against", metavar="VALUE", help="compare the others with this one (default: the last)")
    add("--list", action="store_true", help="print every training, too")
    add("--csv", type=Path, metavar="FILE", help="write every training as a row of a CSV file")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    parse(None)  # --help, before the imports below take their seconds

import pandas as pd

from raykb.report.comparison import ComparisonTable
from raykb.report.tables import markdown
from raykb.runtime.runs import TrackedRun, tracked_runs
from raykb.runtime.secrets import redacted
from raykb.runtime.tracking import resolve_uri

FAILED = "FAILED"  # MLflow's status of a training that did
OVER = "comparison.over"  # the parameter that says what the labels are
IRRELEVANT = (  # to what a training reaches, or meant to differ
    "training_number",
    "comparison.",
    "recipe.save_every",
    "resources.",
    "storage",
    "stream.name",
    "tracking.",
)


def pairs(given: list[str], option: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` arguments as a mapping."""
    wrong = [text for text in given if not text.partition("=")[1]]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: no '='; write {option} KEY=VALUE")
    return {key: value for key, _, value in (text.partition("=") for text in given)}


def wanted(given: argparse.Namespace) -> list[TrackedRun]:
    """Return the trainings that are asked for; where ``given.by`` is None, it is chosen by them.

    Raises:
        ValueError: there are none; what there is, is named.
    """
    uri = resolve_uri(given.uri)
    where, tags = pairs(given.where, "--where"), pairs(given.tag, "--tag")
    finished, failed = (
        tracked_runs(uri, given.experiment, params=where, tags=tags, status=status)
        for status in ("FINISHED", FAILED)
    )
    every = sorted(finished + failed, key=lambda run: run.started_s)
    parents = {run.invocation_id for run in every if run.id != run.invocation_id}
    trainings = [run for run in every if run.id not in parents]
    of_run = [run for run in trainings if is_of(run, given.run)]
    given.by = given.by or (LABEL if any(LABEL in run.params for run in of_run) else METHOD)
    chosen = [run for run in of_run if {given.by, given.seed} <= run.params.keys()]
    if any(run.status != FAILED for run in chosen):
        began = {run.invocation_id: place for place, run in reversed(list(enumerate(chosen)))}
        number = "training_number"  # children of an invocation begin at once
        return sorted(
            chosen, key=lambda run: (began[run.invocation_id], int(run.params.get(number, 0)))
        )
    fit = [run for run in trainings if {given.by, given.seed} <= run.params.keys()]
    runs = [run for run in fit if run.status != FAILED]
    invocations = ", ".join(dict.fromkeys(run.invocation for run in runs))
    raise ValueError(
        f"{uri}: of {len(finished)} finished runs of {given.experiment!r}"
        f"{' with ' + ', '.join(given.where + given.tag) if where or tags else ''}, "
        f"{len(runs)} have the parameters {given.by!r} and {given.seed!r}"
        + (f" and none is of --run {' '.join(given.run)}; there is {invocations}" * bool(runs))
        + f"; {len(chosen)} that failed have" * bool(chosen)
    )


def is_of(run: TrackedRun, invocations: list[str]) -> bool:
    """Return whether a run is of one of these invocations, by name or id; any is, of none."""
    return not invocations or not {run.invocation, run.invocation_id}.isdisjoint(invocations)


def over_of(runs: list[TrackedRun], by: str) -> str:
    """Return what is compared: what all trainings name, if by their labels, else the parameter."""
    named = {run.params.get(OVER) for run in runs} if by == LABEL else {by}
    return named.pop() or by if len(named) == 1 else by


def newest(runs: list[TrackedRun], given: argparse.Namespace) -> list[TrackedRun]:
    """Return the newest training of each label and seed, in the order in which these began.

    One that failed is returned only where none has ended well.
    """
    last: dict[tuple[str, str], TrackedRun] = {}
    for run in runs:
        key = run.params[given.by], run.params[given.seed]
        if run.status != FAILED or key not in last:
            last.pop(key, None)
            last[key] = run
    return list(last.values())


def table_of(runs: list[TrackedRun], given: argparse.Namespace) -> pd.DataFrame:
    """Return a row per training, with the metrics that are compared; one that failed has none."""
    names = metrics_of(runs, given)
    rows = [
        {
            "run": run.name,
            "invocation": run.invocation,
            "label": run.params[given.by],
            "seed": run.params[given.seed],
            "id": run.id,
            "status": run.status,
        }
        | {name: None if run.status == FAILED else run.metrics.get(name) for name in names}
        for run in runs
    ]
    return pd.DataFrame(rows)


def metrics_of(runs: list[TrackedRun], given: argparse.Namespace) -> list[str]:
    """Return the metrics that are compared.

    Raises:
        ValueError: no training has one that was asked for; similar ones are named.
    """
    known = {name for run in runs if run.status != FAILED for name in run.metrics}
    if not given.metric:
        there = [name for name in DEFAULT if name in known]
        if there:
            return there
    missing = [name for name in given.metric or DEFAULT[:1] if name not in known]
    if missing:
        final = sorted(name for name in known if not name.startswith(("train/", "time/")))
        raise ValueError(f"--metric {missing[0]}: no training has it; there is {', '.join(final)}")
    return list(given.metric)


def unlike(runs: list[TrackedRun], given: argparse.Namespace) -> list[str]:
    """Return the parameters in which trainings differ that should be alike, with their values.

    Those of what is compared, as ``method.threshold``, should be alike over its seeds.
    """
    found = dict[str, None]()
    over = over_of(runs, given.by)
    for one in (None, *dict.fromkeys(run.params[given.by] for run in runs)):
        some = [run for run in runs if one in (None, run.params[given.by])]
        keys = {key for run in some for key in run.params} - {given.by, given.seed, LABEL}
        for key in sorted(key for key in keys if not key.startswith(IRRELEVANT)):
            values = sorted({run.params.get(key, "none") for run in some})
            inner = f"{key}.".startswith(f"{over}.")
            if len(values) > 1 and inner == (one is not None):
                place = f"{one}: " * inner
                found[f"{place}{key}: {', '.join(values)}"] = None
    return list(found)


def show(runs: list[TrackedRun], passed_over: int, given: argparse.Namespace) -> None:
    """Print the tables, and write the file if there is to be one."""
    table = table_of(runs, given)
    names = metrics_of(runs, given)
    labels = list(dict.fromkeys(table["label"]))
    subject = given.against or labels[-1]
    if subject not in labels:
        raise ValueError(f"--against {subject}: not among {', '.join(labels)}")
    print(
        f"{len(runs)} trainings of {given.experiment} in "
        f"{table['invocation'].nunique()} invocations"
        + f"; {passed_over} older ones with the same {given.by} and seed"
        * bool(passed_over)
    )
    if given.list:
        cells = [
            [row["run"], row["invocation"], str(row["seed"])]
            + ["" if pd.isna(row[name]) else f"{row[name]:.4g}" for name in names]
            for row in table.to_dict("records")
        ]
        print("\n" + markdown(["training", "invocation", "seed", *names], cells))
    rows, over = table.to_dict("records"), over_of(runs, given.by)
    print("\n" + ComparisonTable(rows, over=over, subject=subject, metrics=names).text())
    if differing := unlike(runs, given):
        print("\nThese trainings are not alike; choose by --run or --where:")
        print("\n".join(f"  {line}" for line in differing))
    if given.csv:
        table.to_csv(given.csv, index=False)
        print(f"\n{given.csv}: {len(table)} rows")


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison."""
    given = parse(arguments)
    try:
        runs = wanted(given)
        chosen = newest(runs, given)
        kept = {run.id for run in chosen}
        show(chosen, sum(run.id not in kept and run.status != FAILED for run in runs), given)
    except (ValueError, OSError) as error:
        sys.exit(redacted(f"error: {error}"))


if __name__ == "__main__":
    main()
