import json
import math

import numpy as np
import pytest

from raykb.report.comparison import RULE, ComparisonTable

SCORES = {"none": [0.80, 0.82], "cutout": [0.85, 0.86], "searched_policy": [0.90, 0.89]}


def rows_of(scores, metric="test/top1"):
    return [
        {"label": label, "seed": seed, metric: value}
        for label, values in scores.items()
        for seed, value in enumerate(values)
        if value is not None
    ]


def compared(scores=SCORES, metric="test/top1", **settings):
    given = {"over": "augmentation", "subject": "searched_policy", "metrics": [metric]} | settings
    return ComparisonTable(rows_of(scores, metric), **given)


def cells(text):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [row for row in rows if row and not row[0].startswith("---")]


# ---------------------------------------------------------------------- numbers


def test_labels_are_compared_seed_by_seed_in_order_of_appearance():
    table = compared().tables["test/top1"].set_index("label")
    assert list(table.index) == list(SCORES)
    assert table.loc["none", "mean"] == pytest.approx(0.81)
    assert table.loc["none", "sd"] == pytest.approx(0.02 / math.sqrt(2))
    assert table.loc["none", "difference"] == pytest.approx(0.085)
    assert (table["seeds"] == 2).all()
    assert table.loc["searched_policy", ["difference", "low", "high"]].isna().all()


def test_the_interval_of_a_difference_is_student_s_over_pairs_of_seeds():
    scores = {"none": (0.80, 0.82, 0.84), "searched": (0.85, 0.86, 0.90)}
    table = compared(scores, subject="searched").tables["test/top1"]
    half = 4.302652729911275 * 0.01 / 3**0.5  # t at 97.5 %, two degrees of freedom
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([0.05 - half, 0.05 + half])


def test_a_difference_does_not_depend_on_the_order_of_the_rows():
    given = {"over": "model", "subject": "cutout", "metrics": ["test/top1"], "labels": list(SCORES)}
    rows = rows_of(SCORES)
    assert ComparisonTable(rows[::-1], **given).means() == ComparisonTable(rows, **given).means()
    assert ComparisonTable(rows[::-1], **given).text() == ComparisonTable(rows, **given).text()


def test_a_difference_is_over_the_seeds_that_both_have():
    scores = {"a": [1.0, 2.0, 4.0], "b": [None, 1.0, 2.0]}
    table = compared(scores, "test/loss", subject="a")
    assert table.tables["test/loss"]["difference"].tolist()[1] == pytest.approx(1.5)
    assert cells(table.text())[0][1:3] == ["seeds", "loss"]
    assert [row[1] for row in cells(table.text())[1:]] == ["3", "2"]
    assert "+1.5" in table.text()


def test_one_seed_gives_means_and_nothing_else():
    table = compared({label: scores[:1] for label, scores in SCORES.items()})
    assert cells(table.text()) == [
        ["augmentation", "top-1 %"],
        ["none", "80.00"],
        ["cutout", "85.00"],
        ["searched_policy", "90.00"],
    ]


def test_means_are_named_by_metric_and_label():
    assert compared().means() == {
        "test/top1/none": pytest.approx(0.81),
        "test/top1/cutout": pytest.approx(0.855),
        "test/top1/searched_policy": pytest.approx(0.895),
    }
    assert compared().headline() == {"test/top1": pytest.approx(0.895)}
    assert compared(SCORES | {"searched_policy": [None]}).headline() == {}


# ---------------------------------------------------------------------- text


def test_shares_read_in_percent_and_the_rule_stands_below():
    assert compared(over="method").text().splitlines() == [
        "| method          | top-1 % |   sd | searched_policy − method |    95 % interval |",
        "| --------------- | ------: | ---: | -----------------------: | ---------------: |",
        "| none            |   81.00 | 1.41 |                    +8.50 | -10.56 to +27.56 |",
        "| cutout          |   85.50 | 0.71 |                    +4.00 |  -8.71 to +16.71 |",
        "| searched_policy |   89.50 | 0.71 |                          |                  |",
        "",
        RULE,
    ]


def test_one_training_alone_is_compared_with_nothing():
    assert compared({"cutout": [0.85]}, subject="cutout").text().splitlines() == [
        "| augmentation | top-1 % |",
        "| ------------ | ------: |",
        "| cutout       |   85.00 |",
    ]


def test_a_table_a_metric_with_the_labels_that_have_it():
    rows = [
        {"label": "supervised", "seed": 0, "test/top1": 0.6},
        {"label": "uda", "seed": 0, "test/top1": 0.7, "pseudo_labels/correct": 0.8},
    ]
    metrics = ["test/top1", "test/unheard", "pseudo_labels/correct"]
    table = ComparisonTable(rows, over="method", subject="uda", metrics=metrics)
    assert cells(table.text()) == [
        ["method", "top-1 %"],
        ["supervised", "60.00"],
        ["uda", "70.00"],
        ["method", "correct pseudo-labels %"],
        ["uda", "80.00"],
    ]
    assert table.missing == []


# ---------------------------------------------------------------------- failed trainings


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_trainings_without_a_result_are_named(value):
    rows = rows_of(SCORES)
    rows[1]["test/top1"] = value
    given = {"over": "augmentation", "subject": "cutout", "metrics": ["test/top1"]}
    for some in (rows, rows[:1] + rows[2:]):
        table = ComparisonTable(some, **given)
        assert table.missing == ["none/seed-1"]
        assert table.text().split("\n\n")[1:] == [
            "1 of 6 trainings has no result: none/seed-1",
            RULE,
        ]
        assert cells(table.text())[1][:4] == ["none", "1", "80.00", ""]


def test_a_label_without_any_result_has_a_row_of_dashes():
    scores = {label: SCORES[label] for label in ("none", "searched_policy")}
    table = compared(scores, labels=list(SCORES), seeds=2)
    assert cells(table.text())[2] == ["cutout", "–", "–", "–", "–"]
    assert "2 of 6 trainings have no result: cutout/seed-0, cutout/seed-1" in table.text()
    assert list(table.means()) == ["test/top1/none", "test/top1/searched_policy"]
    texts = [text.get_text() for text in table.figure().axes[0].texts]
    assert texts == ["–", "81.00 ± 1.41", "89.50 ± 0.71"]


def test_without_a_subject_there_are_no_differences():
    scores = {"none": SCORES["none"], "cutout": SCORES["cutout"]}
    table = compared(scores, labels=list(SCORES), seeds=2)
    assert table.tables["test/top1"]["difference"].isna().all()


def test_of_nothing_there_is_no_table_and_no_picture():
    table = compared({}, labels=list(SCORES), seeds=1)
    assert table.text().startswith("3 of 3 trainings have no result: none/seed-0, ")
    assert RULE not in table.text()
    with pytest.raises(ValueError, match="nothing to draw"):
        table.figure()


def test_what_cannot_be_compared_is_refused():
    rows = rows_of(SCORES)
    given = {"over": "augmentation", "subject": "cutout", "metrics": ["test/top1"]}
    with pytest.raises(ValueError, match="two are of none/seed-0"):
        ComparisonTable([*rows, rows[0]], **given)
    with pytest.raises(ValueError, match="'none': must be one of cutout, searched_policy"):
        ComparisonTable(rows, **given, labels=["cutout", "searched_policy"])
    with pytest.raises(ValueError, match="'cutout': must be one of none, searched_policy"):
        ComparisonTable(rows[:2], **given, labels=["none", "searched_policy"])


# ---------------------------------------------------------------------- summary


def test_the_summary_is_json_with_none_for_what_is_not_finite():
    rows = [
        {"label": "a", "seed": 0, "test/top1": np.float64(0.5), "test/loss": math.nan},
        {"label": "b", "seed": np.int64(0), "test/top1": 0.25, "steps": 7},
        {"label": "b", "seed": 1, "test/top1": math.inf},
    ]
    metrics = ["test/top1", "test/loss"]
    table = ComparisonTable(rows, over="model", subject="b", metrics=metrics)
    summary = json.loads(json.dumps(table.summary(), allow_nan=False))
    nothing = dict.fromkeys(("sd", "difference", "low", "high"))
    assert summary == {
        "schema": 2,
        "over": "model",
        "subject": "b",
        "tables": {
            "test/top1": [
                {"label": "a", "seeds": 1, "mean": 0.5} | nothing,
                {"label": "b", "seeds": 1, "mean": 0.25} | nothing,
            ]
        },
        "results": [
            {"label": "a", "seed": 0, "test/top1": 0.5, "test/loss": None},
            {"label": "b", "seed": 0, "test/top1": 0.25, "steps": 7},
            {"label": "b", "seed": 1, "test/top1": None},
        ],
        "missing": ["a/seed-1", "b/seed-1"],
    }


# ---------------------------------------------------------------------- picture


def test_the_comparison_is_drawn_best_on_top_with_its_figures():
    (axes,) = compared().figure().axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["none", "cutout", "searched policy"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["81.00 ± 1.41", "85.50 ± 0.71", "89.50 ± 0.71"]
    assert axes.get_xlabel() == "top-1 %: mean ± sd over seeds, and each seed"


def test_the_lowest_loss_is_on_top():
    (axes,) = compared(SCORES, "test/loss").figure().axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["searched policy", "cutout", "none"]
    assert axes.texts[-1].get_text() == "0.81 ± 0.01414"


def test_a_comparison_of_one_seed_is_drawn_without_spread():
    figure = compared({label: scores[:1] for label, scores in SCORES.items()}).figure()
    assert [text.get_text() for text in figure.axes[0].texts] == ["80.00", "85.00", "90.00"]


def test_a_label_is_no_formula_in_the_picture():
    found = compared({"$x_{$": [0.1, 0.2], "searched_policy": [0.3, 0.4]}).figure()
    found.draw_without_rendering()
    assert r"\$x {\$" in [label.get_text() for label in found.axes[0].get_yticklabels()]
