"""What trainings cost, and the best that they reached."""

from raykb.report.costs import best, costs


def test_costs_are_means_over_the_trainings_that_have_them():
    rows = [
        {"label": "a", "time/wall_s": 2.0, "time/cpu_s": 1.0},
        {"label": "a", "time/wall_s": 4.0, "time/cpu_s": 2.0},
        {"label": "b", "time/wall_s": None},
    ]
    assert costs(rows, over="method").splitlines() == [
        "| method | seconds | CPU s |",
        "| ------ | ------: | ----: |",
        "| a      |     3.0 |   1.5 |",
        "| b      |         |       |",
    ]


def test_the_best_is_the_highest_or_for_a_loss_the_lowest_on_the_way_or_at_the_end():
    history = {
        "valid/top1": [(1, 0.9), (2, 0.5)],
        "test/top1": [(2, 0.6)],
        "test/loss": [(1, 0.5), (2, 0.7)],
    }
    assert best(history, "test/top1") == 0.9
    assert best(history, "test/loss") == 0.5


def test_one_value_is_no_best():
    assert best({"test/top1": [(2, 0.6)]}, "test/top1") is None
    assert best({}, "test/top1") is None
