import math

import pytest

from raykb.report import Scored, TaskTable, slices

CASES = [f"case_{number}" for number in range(8)]


def scored(task, method, value, *, seed=0, metric="dice"):
    scores = {case: {"organ": value + 0.01 * n} for n, case in enumerate(CASES)}
    return Scored(task, method, 0, seed, {metric: scores})


def hole(task, method):
    return Scored(task, method, 0, 0, None, f"{task}/{method}/fold-0")


def table(rows):
    return TaskTable(rows, tasks=["A", "B"], methods=["good", "bad"])


ALL = [scored(task, m, v) for task in "AB" for m, v in (("good", 0.8), ("bad", 0.5))]


def test_cells_have_the_mean_over_cases_with_its_interval_and_the_last_row_the_mean_of_tasks():
    text = table(ALL).text()
    assert "| task " in text
    assert "Dice % good" in text
    assert "83.5 (81.9 to 85.0)" in text
    last = [cell.strip() for cell in text.splitlines()[4].split("|")]
    assert last == ["", "mean of tasks", "83.5", "53.5", ""]


def test_the_better_method_comes_first_and_stays_there():
    found = table(ALL).summary()
    assert [(row["method"], row["place"]) for row in found["ranking"]] == [("good", 1), ("bad", 2)]
    assert found["mean_tau"] == 1
    assert "order by significance" in table(ALL).text()


def test_means_intervals_and_the_order_are_figures():
    figures = table(ALL).figures()
    mean, low, high = table(ALL).means["A", "good", "dice"]
    keys = "dice/good/A", "dice/good/A/low", "dice/good/A/high"
    assert tuple(figures[key] for key in keys) == (mean, low, high)
    assert (figures["order/place/good"], figures["order/place/bad"]) == (1, 2)
    assert (figures["order/mean_rank/good"], figures["order/mean_tau"]) == (1, 1)
    alone = [each for each in ALL if each.method == "good"]
    found = TaskTable(alone, tasks=["A", "B"], methods=["good"]).figures()
    assert not any(key.startswith("order") for key in found)


def test_seeds_of_a_case_are_averaged_before_cases_are_drawn():
    rows = [scored("A", "good", 0.6, seed=0), scored("A", "good", 0.8, seed=1)]
    both = table(rows).means["A", "good", "dice"]
    assert both == pytest.approx(table([scored("A", "good", 0.7)]).means["A", "good", "dice"])


def test_a_missing_training_is_marked_where_it_belongs_and_named():
    found = table([*ALL[:-1], hole("B", "bad")])
    assert "– *" in found.text()
    assert (
        "1 training has no result; cases without a score count in no mean, but as 0" in found.text()
    )
    assert found.text().count(" *") == 1
    assert found.summary()["missing"] == ["B/bad/fold-0"]


def test_a_method_that_failed_everywhere_is_ordered_as_one_that_found_nothing():
    found = table([each for each in ALL if each.method == "good"] + [hole("A", "bad")])
    assert [row["place"] for row in found.summary()["ranking"]] == [1, 2]
    assert math.isnan(found.means["A", "bad", "dice"].mean)


def test_without_any_result_the_table_says_so_and_names_what_is_missing():
    found = table([hole("A", "good")])
    assert found.text().startswith("No training has a result.")
    assert "A/good/fold-0" in found.text()
    assert found.figures() == {}


def test_a_region_that_no_case_has_is_left_out():
    none = {case: {"organ": None} for case in CASES}
    rows = [Scored("A", "good", 0, 0, {"dice": none})]
    found = table(rows)
    assert found.figures() == {}
    assert found.summary()["tasks"][0]["mean"] is None


def test_outlines_are_drawn_of_reference_and_prediction():
    plane = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    panel = {"case": "a", "slice": 1, "image": plane, "reference": plane, "prediction": plane}
    empty = panel | {"prediction": [[0] * 4] * 4}
    figure = slices({"found": panel, "missed": empty}, title="A")
    found, missed = figure.axes
    assert len(found.collections) == 2
    assert len(missed.collections) == 1
