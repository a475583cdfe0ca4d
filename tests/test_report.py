"""Tables state means, spreads and paired differences; pictures are made without a display."""

import pandas as pd
import pytest

from raykb import report
from raykb.metrics.classification import paired_difference

RESULTS = pd.DataFrame(
    [
        {"method": method, "seed": seed, "top1": top1}
        for method, scores in {"none": (0.80, 0.82, 0.84), "searched": (0.85, 0.86, 0.90)}.items()
        for seed, top1 in enumerate(scores)
    ]
)
HISTORY = pd.DataFrame(
    {
        "split": [0, 0, 0, 1, 1, 1],
        "round": [0] * 6,
        "number": [0, 1, 2] * 2,
        "status": ["finished", "stopped", "finished", "failed", "finished", "finished"],
        "reward": [0.1, 0.2, 0.3, None, 0.2, 0.1],
    }
)


def table(results=RESULTS):
    return report.comparison(results, subject="searched", interval=paired_difference)


def test_a_comparison_is_of_pairs_of_seeds():
    rows = table().set_index("method")
    assert list(rows.index) == ["none", "searched"]
    assert rows.loc["none", "mean"] == pytest.approx(0.82)
    assert rows.loc["none", "sd"] == pytest.approx(0.02)
    assert rows.loc["none", "difference"] == pytest.approx(0.05)
    half = 4.302652729911275 * 0.01 / 3**0.5  # Student's t at 97.5 %, two degrees of freedom
    assert rows.loc["none", "low"] == pytest.approx(0.05 - half)
    assert rows.loc["none", "high"] == pytest.approx(0.05 + half)
    assert pd.isna(rows.loc["searched", "difference"])


def test_the_order_of_trainings_does_not_matter():
    shuffled = RESULTS.sample(frac=1, random_state=0).sort_values("method", kind="stable")
    pd.testing.assert_frame_equal(table(shuffled), table())


def test_one_seed_gives_means_alone():
    rows = table(RESULTS[RESULTS["seed"] == 0])
    assert rows["mean"].tolist() == [0.80, 0.85]
    assert rows[["sd", "difference", "low", "high"]].isna().all().all()
    assert "80.00" in report.comparison_text(rows, subject="searched")


def test_the_text_is_a_markdown_table_in_percent():
    lines = report.comparison_text(table(), subject="searched").splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]][3] == "searched − method"
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "none",
        "82.00",
        "2.00",
        "+5.00",
        "+2.52 to +7.48",
    ]
    assert len({len(line) for line in lines}) == 1


def test_search_history_has_a_panel_per_study_and_the_best_so_far_never_falls():
    figure = report.search_history(HISTORY, "max_accuracy")
    assert [axes.get_title() for axes in figure.axes] == ["split 0, round 0", "split 1, round 0"]
    for axes in figure.axes:
        best = next(line for line in axes.lines if line.get_label() == "best so far").get_ydata()
        assert list(best) == sorted(best)
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 2]  # the stopped one is marked apart


def test_operation_use_shows_every_operation_also_an_unused_one():
    figure = report.operation_use({"Rotate": 3, "Invert": 0, "Color": 1})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "Invert",
        "Color",
        "Rotate",
    ]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: report.search_history(HISTORY, "mean_loss"),
        lambda: report.operation_use({"Rotate": 3, "Invert": 1}),
        lambda: report.comparison_figure(RESULTS, table(), subject="searched"),
    ],
)
def test_every_figure_is_a_png(figure):
    assert report.png(figure()).startswith(b"\x89PNG")
