"""What compared trainings are worth: means over seeds, and differences over paired seeds.

A difference has Student's interval of :func:`raykb.metrics.classification.paired_difference`, here
and nowhere else.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from raykb.metrics.classification import paired_difference
from raykb.metrics.names import metric
from raykb.report.figures import BLUE, RED, literal, plain_figure
from raykb.report.tables import NONE, cell, markdown, plain

SCHEMA = 2
RULE = "A difference is one only if its interval leaves out 0."
COLUMNS = ["label", "seeds", "mean", "sd", "difference", "low", "high"]


class ComparisonTable:
    """Trainings that differ in one thing, over seeds that pair them.

    The same seed means the same start and order of examples, so that differences are taken seed by
    seed. A value that is missing, None or not finite is none; a training has a result if it has a
    value of any of the metrics.

    Args:
        rows: a mapping per training with ``label``, ``seed``, and metrics by full name, as
            ``"test/top1"``; more is kept for :meth:`summary`.
        over: what the labels are, as ``"method"``; heads their column.
        subject: the label that the others are compared with.
        metrics: names of those that are compared; one without any value has no table.
        labels: all of them, in order, those of failed trainings too; by default, as rows have them.
        seeds: their number, from 0 on; by default, those that rows have.

    Attributes:
        labels: in order.
        tables: for each metric with a value, a row per label: ``label``, ``seeds``, ``mean`` and
            ``sd`` over seeds, and ``difference``, ``low``, ``high``: the subject's value minus the
            label's, over the seeds that both have, and the 95 % interval of its mean. None where
            too few seeds allow no such figure. A label with results, but none of this metric, is
            left out.
        missing: ``"label/seed-N"`` of each training without a result.

    Raises:
        ValueError: two rows are of one label and seed, or a label is none of ``labels``.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        over: str,
        subject: str,
        metrics: Sequence[str],
        labels: Sequence[str] | None = None,
        seeds: int | None = None,
    ) -> None:
        self.over, self.subject = over, subject
        self.rows = [dict(row) for row in rows]
        seen = dict.fromkeys(str(row["label"]) for row in self.rows)
        self.labels = list(seen if labels is None else labels)
        _refuse_repeated(self.rows)
        for label in (*seen, *([] if labels is None else [subject])):
            if label not in self.labels:
                raise ValueError(f"label {label!r}: must be one of {', '.join(self.labels)}")
        numbers = dict.fromkeys([*range(seeds or 0), *(row["seed"] for row in self.rows)])
        self._results = {
            (str(row["label"]), row["seed"])
            for row in self.rows
            if any(_has(row, name) for name in metrics)
        }
        pairs = [(label, seed) for seed in numbers for label in self.labels]
        self._expected = len(pairs)
        self.missing = [f"{a}/seed-{seed}" for a, seed in pairs if (a, seed) not in self._results]
        self.tables = {
            name: self._table(name)
            for name in dict.fromkeys(metrics)
            if any(_has(row, name) for row in self.rows)
        }

    def text(self) -> str:
        """Return a Markdown table a metric, which trainings are missing, and how to read it all."""
        parts = [self._text(name) for name in self.tables]
        if count := len(self.missing):
            have = "has" if count == 1 else "have"
            named = ", ".join(self.missing)
            parts.append(f"{count} of {self._expected} trainings {have} no result: {named}")
        if len(self.labels) > 1 and self.tables:
            parts.append(RULE)
        return "\n\n".join(parts)

    def summary(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold: what is not finite is None."""
        tables = {name: table.to_dict("records") for name, table in self.tables.items()}
        return {
            "schema": SCHEMA,
            "over": self.over,
            "subject": self.subject,
            "tables": {name: [_plain(row) for row in rows] for name, rows in tables.items()},
            "results": [_plain(row) for row in self.rows],
            "missing": self.missing,
        }

    def means(self) -> dict[str, float]:
        """Return the mean over seeds of each metric and label, as ``{"test/top1/cutout": 0.9}``."""
        return {
            f"{name}/{row['label']}": float(row["mean"])
            for name, table in self.tables.items()
            for row in table.to_dict("records")
            if row["seeds"]
        }

    def headline(self) -> dict[str, float]:
        """Return the mean of the subject of each metric, under the name that trainings have."""
        means = self.means()
        named = {name: f"{name}/{self.subject}" for name in self.tables}
        return {name: means[own] for name, own in named.items() if own in means}

    def figure(self) -> Figure:
        """Draw every seed of every label, and the mean with its standard deviation; best on top.

        It is of the first metric that there is.

        Raises:
            ValueError: there is none.
        """
        if not self.tables:
            raise ValueError("metrics: no row has a value of any of them, there is nothing to draw")
        name = next(iter(self.tables))
        shown, table = metric(name), self.tables[name]
        figure, axes = plain_figure(7.0, 0.9 + 0.45 * len(table))
        upwards = table.sort_values("mean", ascending=shown.higher_is_better, na_position="first")
        ordered = upwards.to_dict("records")
        for place, row in enumerate(ordered):
            colour = RED if row["label"] == self.subject else BLUE
            figures = NONE
            if row["seeds"]:
                values = [shown.scale * value for value in self._values(name, row["label"])]
                mean = shown.scale * row["mean"]
                sd = None if pd.isna(row["sd"]) else shown.scale * row["sd"]
                axes.errorbar(mean, place, xerr=sd, fmt="D", color=colour, capsize=4, ms=6)
                axes.plot(values, [place - 0.22] * len(values), "o", color=colour, alpha=0.5, ms=4)
                figures = " ± ".join(cell(row[part], shown) for part in ("mean", "sd"))
            beside = axes.get_yaxis_transform()
            figures = figures.removesuffix(" ± ")  # of one seed
            axes.text(1.02, place, figures, transform=beside, va="center", color=colour, fontsize=9)
        names = [literal(row["label"].replace("_", " ")) for row in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.set_xlabel(f"{shown.heading}: mean ± sd over seeds, and each seed")
        axes.grid(axis="x", alpha=0.3)
        return figure

    def _values(self, name: str, label: str) -> "pd.Series[float]":
        """Return a label's values of a metric by seed."""
        rows = [row for row in self.rows if str(row["label"]) == label and _has(row, name)]
        return pd.Series({row["seed"]: float(row[name]) for row in rows}, dtype=float).sort_index()

    def _table(self, name: str) -> pd.DataFrame:
        with_result = {label for label, _ in self._results}
        subject, rows = self._values(name, self.subject), []
        for label in self.labels:
            own = self._values(name, label)
            if own.empty and label in with_result:
                continue  # its trainings have no such metric
            row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"label": label, "seeds": len(own)}
            row |= {"mean": own.mean()} if len(own) else {}
            row |= {"sd": own.std()} if len(own) > 1 else {}
            both = [seed for seed in subject.index if seed in own.index]
            if label != self.subject and len(both) > 1:
                found = paired_difference(list(subject[both]), list(own[both]))
                row |= {"difference": found.mean, "low": found.low, "high": found.high}
            rows.append(row)
        table: pd.DataFrame = pd.DataFrame(rows, columns=COLUMNS)
        return table

    def _text(self, name: str) -> str:
        """Return the table of a metric as Markdown, without columns that have nothing to say.

        The number of seeds is told where labels have different ones.
        """
        shown, table = metric(name), self.tables[name]
        uneven = table.loc[table["seeds"] > 0, "seeds"].nunique() > 1
        rows = [
            [
                str(row["label"]),
                str(row["seeds"]) * uneven,
                cell(row["mean"], shown),
                cell(row["sd"], shown),
                cell(row["difference"], shown, "+"),
                " to ".join(cell(row[end], shown, "+") for end in ("low", "high")).strip(" to"),
            ]
            for row in table[table["seeds"] > 0].to_dict("records")
        ]
        difference = f"{self.subject} − {self.over}"
        head = [self.over, "seeds", shown.heading, "sd", difference, "95 % interval"]
        columns = list(zip(head, *rows, strict=True))
        columns = [c for place, c in enumerate(columns) if place in (0, 2) or any(c[1:])]
        head, *rows = map(list, zip(*columns, strict=True))
        told = {row[0]: row for row in rows}
        nothing = [NONE] * (len(head) - 1)
        return markdown(head, [told.get(label, [label, *nothing]) for label in table["label"]])


def _refuse_repeated(rows: Sequence[Mapping[str, Any]]) -> None:
    seen = set()
    for row in rows:
        if (key := (row["label"], row["seed"])) in seen:
            raise ValueError(
                f"rows: two are of {key[0]}/seed-{key[1]}; must be one of each label and seed"
            )
        seen.add(key)


def _has(row: Mapping[str, Any], name: str) -> bool:
    return row.get(name) is not None and math.isfinite(row[name])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with Python's own numbers; None for those that are not finite."""
    return {name: plain(value) for name, value in row.items()}
