"""Compare tracked runs: mean and standard deviation over seeds, and paired differences."""

import argparse
import sys
from pathlib import Path
from typing import Any

USAGE = """
Trainings are put together by a parameter, as 'label', and paired by another, as 'seed_number': the
same number means the same labelled images, initial weights and order of images. Of several finished
trainings with one label and one number the newest counts; where there are none, one that failed is
a gap in the table. Of one run alone the table is that of its results.md. The interval is
Student's, of the mean of the paired differences, at 95 %; a difference is one only if its interval
leaves out 0. The best of the steps was chosen by what it is measured on: it flatters.

examples:
  compare.py                                           the methods of semi_train.py
  compare.py --run semi_train-20261121-120000 --list   those of one run, each training
  compare.py --where labels.count=40 --against fixmatch --csv table.csv
  compare.py --experiment fast-autoaugment --by augmentation --metric test/top1
  compare.py --run runs/semi_train-20261121-120000     the table of its results.md
  compare.py --run runs/semi_train-20261121-120000 --best --costs --html page.html
  compare.py --run runs/semi_train-20261121-120000 --into raykb/semi/README.md
"""
DEFAULT = ("test/top1", "pseudo_labels/correct")
EXPERIMENT = "semi-supervised"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python pipelines/compare.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument

    def some(name: str, metavar: str, what: str) -> None:
        add(name, action="append", default=[], metavar=metavar, help=f"{what}; may be repeated")

    add(
        "--uri",
        help="of the MLflow store (default: that of the run directory, MLFLOW_TRACKING_URI, or "
        "mlflow.db in this folder)",
    )
    add("--experiment", metavar="NAME", help=f"(default: that of --run, or {EXPERIMENT})")
    some("--run", "RUN", "only trainings of this run: its directory, its name, or MLflow's id")
    some("--where", "KEY=VALUE", "only trainings with this parameter")
    some("--tag", "KEY=VALUE", "only trainings with this tag")
    some("--metric", "NAME", f"what is compared (default: that of the run, or {DEFAULT[0]})")
    add("--best", action="store_true", help="compare the best values over the steps, too")
    add("--by", metavar="PARAM", help="what is compared (default: label, or method without one)")
    add("--seed", default="seed_number", metavar="PARAM", help="pairs them (default: %(default)s)")
    add("--against", metavar="VALUE", help="compare the others with this one (default: the last)")
    add("--list", action="store_true", help="print every training, too")
    add("--costs", action="store_true", help="print what they cost, too: time and memory")
    for name, metavar, what in (
        ("--csv", "FILE", "write every training as a row of a CSV file"),
        ("--markdown", "FILE", "write the tables"),
        ("--into", "FILE.md", "make the tables of a document again, where it has them"),
        ("--picture", "FILE.png", "draw the first table"),
        ("--html", "FILE", "write a page for a browser: tables, curves, pictures, settings"),
    ):
        add(name, type=Path, metavar=metavar, help=what)
    return parser.parse_args(arguments)


if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    parse(None)  # --help, before the imports below take their seconds

import pandas as pd

from raykb.metrics.names import BEST, COSTS
from raykb.report import png
from raykb.report.comparison import ComparisonTable
from raykb.report.costs import best, costs, names_of
from raykb.report.curves import over_the_steps
from raykb.report.documents import renewed
from raykb.report.page import results_page
from raykb.report.tables import markdown
from raykb.runtime import runs as store
from raykb.runtime import trainings as choice
from raykb.runtime.runs import TrackedRun
from raykb.runtime.secrets import redacted, whole_uri
from raykb.runtime.tracking import LABEL, resolve_uri
from raykb.runtime.trainings import FAILED

METHOD = "method"  # what names a compared training in older runs


def pairs(given: list[str], option: str) -> dict[str, str]:
    """Return ``KEY=VALUE`` arguments as a mapping."""
    wrong = [text for text in given if not text.partition("=")[1]]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: no '='; write {option} KEY=VALUE")
    return {key: value for key, _, value in (text.partition("=") for text in given)}


def located(given: argparse.Namespace) -> str:
    """Return the store; run directories of ``given`` become ids, their experiment is set."""
    found = [store.run_in(Path(run)) for run in given.run]
    recorded = [one[1] for one in found if one is not None]
    uri = resolve_uri(given.uri or whole_uri(next(filter(None, recorded), None)))
    given.run = [run if one is None else one[0] for run, one in zip(given.run, found, strict=True)]
    if given.experiment is None:
        known = (store.experiment_of(uri, run) for run in given.run)
        given.experiment = next(filter(None, known), EXPERIMENT)
    return uri


def wanted(uri: str, given: argparse.Namespace) -> list[TrackedRun]:
    """Return the trainings that are asked for; where ``given.by`` is None, it is chosen by them.

    Raises:
        ValueError: there are none; what there is, is named.
    """
    where, tags = pairs(given.where, "--where"), pairs(given.tag, "--tag")
    finished, failed = (
        store.tracked_runs(uri, given.experiment, params=where, tags=tags, status=status)
        for status in ("FINISHED", FAILED)
    )
    trainings = choice.children(sorted(finished + failed, key=lambda run: run.started_s))
    of_run = [run for run in trainings if choice.is_of(run, given.run)]
    given.by = given.by or (LABEL if any(LABEL in run.params for run in of_run) else METHOD)
    chosen = [run for run in of_run if {given.by, given.seed} <= run.params.keys()]
    if any(run.status != FAILED for run in chosen):
        return choice.in_order(chosen)
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


def told_of(runs: list[TrackedRun], given: argparse.Namespace) -> dict[str, Any]:
    """Return what the run made its table of, if all trainings are its and nothing else is asked."""
    other = given.by != LABEL or given.where or given.tag
    return {} if other or len({run.invocation_id for run in runs}) > 1 else runs[0].compared


def metrics_of(runs: list[TrackedRun], given: argparse.Namespace) -> list[str]:
    """Return the metrics that are compared: those asked for, or those of the newest run's table.

    Raises:
        ValueError: no training has one that was asked for; similar ones are named.
    """
    known = {name for run in runs if run.status != FAILED for name in run.metrics}
    if not given.metric:
        told = runs[-1].compared.get("settings", {"metrics": DEFAULT})
        there = [name for name in told["metrics"] if name in known]
        if there:
            return there
    missing = [name for name in given.metric or DEFAULT[:1] if name not in known]
    if missing:
        final = sorted(name for name in known if not name.startswith(("train/", "time/")))
        raise ValueError(f"--metric {missing[0]}: no training has it; there is {', '.join(final)}")
    return list(given.metric)


def rows_of(
    uri: str, runs: list[TrackedRun], names: list[str], given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row per training with metrics and costs; one that failed has none of them."""
    asked = [own for name in names for own in names_of(name)] if given.best else []
    histories = store.histories(uri, runs, asked)
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "invocation": run.invocation}
        seed = run.params[given.seed]
        row |= {"label": run.params[given.by], "seed": int(seed) if seed.isdecimal() else seed}
        row |= {"id": run.id, "status": run.status}
        has = {} if run.status == FAILED else run.metrics
        row |= {name: has.get(name) for name in names}
        if given.best:
            row |= {BEST + name: best(histories[run.id], name) if has else None for name in names}
        rows.append(row | {name: has[name] for name in COSTS if name in has})
    return rows


def table_of(
    rows: list[dict[str, Any]], names: list[str], given: argparse.Namespace, **told: Any
) -> ComparisonTable:
    """Return the table of rows; ``told`` is what the run told of it, or but what is compared.

    Raises:
        ValueError: ``--against`` is none of them.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    labels = [label for label in told.get("labels", labels) if label in labels]
    subject = given.against or told.get("subject", labels[-1])
    if subject not in labels:
        raise ValueError(f"--against {subject}: not among {', '.join(labels)}")
    every = [*names, *(BEST + name for name in names if given.best)]
    told |= {"labels": labels, "subject": subject, "metrics": every}
    return ComparisonTable(rows, **told)


def listed(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Return a Markdown table of every training."""
    cells = [
        [row["run"], row["invocation"], str(row["seed"])]
        + ["" if pd.isna(row[name]) else f"{row[name]:.4g}" for name in names]
        for row in rows
    ]
    return markdown(["training", "invocation", "seed", *names], cells)


def page_of(
    uri: str,
    runs: list[TrackedRun],
    texts: list[str],
    compared: ComparisonTable,
    given: argparse.Namespace,
) -> str:
    """Return the page of HTML: tables, curves, the pictures of the runs, and their settings."""
    invocations = {run.invocation_id: run.invocation for run in runs}
    trained = [run for run in runs if run.status != FAILED]
    names = sorted({name for run in trained for name in run.metrics})
    found = store.histories(uri, trained, names)
    drawn = {"comparison.png": png(compared.figure())} if compared.tables else {}
    drawn |= over_the_steps([(run.params[given.by], found[run.id]) for run in trained])
    for run_id, name in invocations.items():
        for file, content in store.pictures(uri, run_id).items():
            drawn.setdefault(f"{name}/{file}" if len(invocations) > 1 else file, content)
    return results_page(
        f"{given.experiment}: {', '.join(invocations.values())}",
        texts=texts,
        files=drawn,
        labels=compared.labels,
        differing=choice.differences(runs, given.by, given.seed),
        alike=choice.shared(runs),
    )


def show(uri: str, runs: list[TrackedRun], passed_over: int, given: argparse.Namespace) -> None:
    """Print the tables, and write the files that are asked for."""
    told = told_of(runs, given)
    settings = told.get("settings", {"over": choice.over_of(runs, given.by)})
    if "labels" in settings:  # a search has trainings of others, too
        runs = [run for run in runs if run.params[given.by] in settings["labels"]]
    names = metrics_of(runs, given)
    rows = rows_of(uri, runs, names, given)
    found = table_of([*rows, *told.get("rows", [])], names, given, **settings)
    texts = [found.text(), *([costs(rows, over=found.over)] if given.costs else [])]
    print(
        f"{len(runs)} trainings of {given.experiment} in "
        f"{len({run.invocation for run in runs})} invocations"
        + f"; {passed_over} older ones with the same {given.by} and seed"
        * bool(passed_over)
    )
    for text in [listed(rows, names)] * given.list + texts:
        print(f"\n{text}")
    if differing := choice.unlike(runs, given.by, given.seed):
        print("\nThese trainings are not alike; choose by --run or --where:")
        print("\n".join(f"  {line}" for line in differing))
    if given.csv:
        pd.DataFrame(rows).to_csv(given.csv, index=False)
        print(f"\n{given.csv}: {len(rows)} rows")
    if given.markdown:
        given.markdown.write_text("\n\n".join(texts) + "\n", "utf-8")
    if given.into:
        given.into.write_text(renewed(given.into.read_text("utf-8"), found.text()), "utf-8")
    if given.picture:
        given.picture.write_bytes(png(found.figure()))
    if given.html:
        given.html.write_text(page_of(uri, runs, texts, found, given), "utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison."""
    given = parse(arguments)
    try:
        uri = located(given)
        runs = wanted(uri, given)
        chosen = choice.newest(runs, given.by, given.seed)
        kept = {run.id for run in chosen}
        older = sum(run.id not in kept and run.status != FAILED for run in runs)
        show(uri, chosen, older, given)
    except (ValueError, OSError) as error:
        sys.exit(redacted(f"error: {error}"))


if __name__ == "__main__":
    main()
