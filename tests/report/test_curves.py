"""Metrics over the steps, as labels have them."""

import pytest

from raykb.report.curves import curved, curves, over_the_steps

HISTORIES = [
    ("a", {"valid/top1": [(1, 0.2), (2, 0.4)], "train/loss": [(1, 3.0), (2, 1.0)]}),
    ("a", {"valid/top1": [(1, 0.4), (2, 0.6)], "train/loss": [(1, 5.0), (2, 1.0)]}),
    ("b", {"train/loss": [(2, 2.0), (1, 2.5)], "train/lr": [(1, 1.0), (2, 0.5)]}),
]


def test_metrics_of_several_steps_have_a_curve_evaluations_and_losses_first():
    once = ("c", {"test/top1": [(2, 0.5)], "time/step_s": [(1, 0.1), (2, 0.1)]})
    assert curved([*HISTORIES, once]) == ["valid/top1", "train/loss", "train/lr"]
    assert curved(HISTORIES, most=1) == ["valid/top1"]
    of_classes = {"valid/class_accuracy/0": [(1, 0.1), (2, 0.2)]}
    parts = {"valid/ood/auroc": [(1, 0.1), (2, 0.2)], "valid/loss": [(1, 0.1), (2, 0.2)]}
    more = curved([*HISTORIES, ("c", of_classes | parts)], most=4)
    assert more == ["valid/loss", "valid/top1", "valid/ood/auroc", "train/loss"]
    assert over_the_steps([once]) == {}
    assert over_the_steps(HISTORIES)["over-the-steps.png"].startswith(b"\x89PNG")


def test_a_line_is_the_mean_of_a_label_and_its_band_the_range():
    figure = curves(HISTORIES, ["train/loss", "valid/top1"])
    loss, top1 = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.get_lines()}
    assert lines == {"a": [[1, 4.0], [2, 1.0]], "b": [[1, 2.5], [2, 2.0]]}
    assert top1.get_lines()[0].get_ydata().tolist() == pytest.approx([30, 50])  # percent
    assert len(top1.get_lines()[1].get_xdata()) == 0  # b has none
    band = loss.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (1.0, 5.0)


def test_more_labels_than_colours_have_other_lines():
    many = [(str(number), {"x": [(1, 1.0), (2, number)]}) for number in range(8)]
    (panel,) = (axes for axes in curves(many, ["x"]).axes)
    assert len({(line.get_color(), line.get_linestyle()) for line in panel.get_lines()}) == 8


def test_steps_are_whole_numbers_and_a_name_is_no_formula():
    figure = curves([("$x_{$", {"valid/top1": [(1, 0.1), (2, 0.2)]})], ["valid/top1"])
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "top-1 % on the way"
    assert all(tick == int(tick) for tick in panel.get_xticks())
