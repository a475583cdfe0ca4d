import pytest

from raykb.metrics.names import COSTS, METRICS, Metric, metric


def test_shares_are_shown_in_percent():
    assert metric("test/top1") == Metric("top-1 %", 100, True)
    assert all(("%" in shown.heading) == (shown.scale == 100) for shown in METRICS.values())


@pytest.mark.parametrize(
    ("name", "higher_is_better"),
    [
        ("test/loss", False),
        ("knn/top1", True),
        ("depth/relative_error", False),
        ("loss/kept", True),
    ],
)
def test_any_metric_has_a_direction(name, higher_is_better):
    assert metric(name).higher_is_better == higher_is_better


def test_an_unknown_metric_is_shown_as_it_is():
    assert metric("knn/purity") == Metric("knn/purity", 1, True)


def test_labels_have_headings_of_their_own():
    assert metric("test/dice") == Metric("Dice %", 100)
    assert metric("test/dice/left_atrium") == Metric("Dice of left atrium %", 100)
    assert metric("test/nsd/liver") == Metric("NSD of liver %", 100)
    assert metric("test/nsd/loss_of_signal").higher_is_better
    heading = "fine-tuned on 0.5 % of labels, top-1 %"
    assert metric("test/fine_tuning/top1_0.5") == Metric(heading, 100)
    assert metric("test/corruption/top1_shot_noise") == Metric("top-1 under shot noise %", 100)


def test_the_best_over_the_steps_is_shown_as_the_metric_is():
    assert metric("best/test/top1") == Metric("best top-1 %", 100)
    assert metric("best/valid/loss") == Metric("best loss on the way", 1, False)


def test_on_the_way_a_metric_is_shown_as_at_the_end():
    assert metric("valid/top1") == Metric("top-1 % on the way", 100)
    assert metric("valid/dice/liver") == Metric("Dice of liver % on the way", 100)
    assert metric("valid/own_error") == Metric("valid/own_error", 1, False)


def test_of_costs_less_is_better():
    assert not any(metric(name).higher_is_better for name in COSTS)
    assert [metric(name).heading for name in COSTS] == [
        "seconds",
        "CPU s",
        "GPU s",
        "peak MiB",
    ]
