import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from raykb import report
from raykb.metrics.classification import paired_difference

METHODS = {"none": [0.80, 0.82], "cutout": [0.85, 0.86], "searched_policy": [0.90, 0.89]}
RESULTS = pd.DataFrame(
    [
        {"method": method, "seed": seed, "top1": score}
        for method, scores in METHODS.items()
        for seed, score in enumerate(scores)
    ]
)


def interval(a, b):
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return sum(differences) / len(differences), 0.0, min(differences), max(differences)


def compare(results):
    return report.comparison(results, subject="searched_policy", interval=interval)


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text")))


def history(**changes) -> pd.DataFrame:
    rows = [
        {"split": split, "round": turn, "number": n, "status": "finished", "reward": n % 7 / 10}
        for split in range(3)
        for turn in range(2)
        for n in range(20)
    ]
    return pd.DataFrame(rows).assign(**changes)


# ---------------------------------------------------------------------- tables


def test_methods_are_compared_seed_by_seed_in_order_of_appearance():
    shuffled = RESULTS.sample(frac=1, random_state=0).sort_values("method", kind="stable")
    table = compare(shuffled).set_index("method")
    assert list(table.index) == ["cutout", "none", "searched_policy"]
    assert table.loc["none", "mean"] == pytest.approx(0.81)
    assert table.loc["none", "sd"] == pytest.approx(0.02 / math.sqrt(2))
    assert table.loc["none", "difference"] == pytest.approx(0.085)
    assert table.loc["none", ["low", "high"]].tolist() == pytest.approx([0.07, 0.10])
    assert (table["seeds"] == 2).all()
    assert table.loc["searched_policy", ["difference", "low", "high"]].isna().all()


def test_the_interval_of_a_difference_is_student_s_over_pairs_of_seeds():
    scores = {"none": (0.80, 0.82, 0.84), "searched": (0.85, 0.86, 0.90)}
    results = pd.DataFrame(
        [
            {"method": m, "seed": n, "top1": x}
            for m, row in scores.items()
            for n, x in enumerate(row)
        ]
    )
    table = report.comparison(results, subject="searched", interval=paired_difference)
    half = 4.302652729911275 * 0.01 / 3**0.5  # t at 97.5 %, two degrees of freedom
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([0.05 - half, 0.05 + half])


def test_one_seed_gives_means_and_nothing_else():
    table = compare(RESULTS[RESULTS["seed"] == 0])
    assert table["mean"].tolist() == [0.80, 0.85, 0.90]
    assert table[["sd", "difference", "low", "high"]].isna().all(axis=None)


def test_the_comparison_reads_in_percent():
    text = report.comparison_text(compare(RESULTS), subject="searched_policy")
    assert text.splitlines() == [
        "| method          | top-1 % |   sd | searched_policy − method |   95 % interval |",
        "| --------------- | ------: | ---: | -----------------------: | --------------: |",
        "| none            |   81.00 | 1.41 |                    +8.50 | +7.00 to +10.00 |",
        "| cutout          |   85.50 | 0.71 |                    +4.00 |  +3.00 to +5.00 |",
        "| searched_policy |   89.50 | 0.71 |                          |                 |",
    ]


def test_a_table_may_have_no_rows():
    assert report.markdown(["a", "name"], []) == "| a   | name |\n| --- | ---: |"


# ---------------------------------------------------------------------- pictures


def test_the_comparison_is_drawn_best_on_top_with_its_figures():
    figure = report.comparison_figure(RESULTS, compare(RESULTS), subject="searched_policy")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "none",
        "cutout",
        "searched policy",
    ]
    assert [text.get_text() for text in axes.texts] == [
        "81.00 ± 1.41",
        "85.50 ± 0.71",
        "89.50 ± 0.71",
    ]
    assert "(%)" in axes.get_xlabel()


def test_a_comparison_of_one_seed_is_drawn_without_spread():
    results = RESULTS[RESULTS["seed"] == 0]
    figure = report.comparison_figure(results, compare(results), subject="searched_policy")
    assert [text.get_text() for text in figure.axes[0].texts] == ["80.00", "85.00", "90.00"]


def test_a_history_has_a_column_a_split_and_a_row_a_round():
    figure = report.search_history(history(), "max_accuracy")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"split {s}, round {t}" for t in range(2) for s in range(3)]
    best = figure.axes[0].lines[-1].get_ydata()
    assert list(best) == [min(n, 6) / 10 for n in range(20)]
    assert "reward: max accuracy" in texts(figure)
    assert "stopped early" not in texts(figure)


def test_candidates_stopped_early_are_marked_and_are_never_the_best():
    part = history()
    part.loc[part["number"] == 6, ["status", "reward"]] = ["stopped", 0.99]
    part.loc[part["number"] == 13, ["status", "reward"]] = ["failed", float("nan")]
    figure = report.search_history(part, "max_accuracy")
    stopped, scored, best = figure.axes[0].lines
    assert list(stopped.get_ydata()) == [0.99]
    assert len(scored.get_xdata()) == 18
    assert max(best.get_ydata()) == 0.5
    assert "stopped early" in texts(figure)


def test_a_history_without_a_single_score_is_drawn():
    figure = report.search_history(history(status="failed", reward=float("nan")), "max_accuracy")
    assert report.png(figure)


def test_operations_are_drawn_by_use_beside_an_even_share():
    figure = report.operation_use({"Rotate": 2, "Invert": 10, "Cutout": 0})
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0, 2, 10]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Cutout", "Rotate", "Invert"]
    assert "even share, 4.0" in texts(figure)


def test_image_columns_shows_each_image_under_its_columns_title():
    columns = {"grey": torch.zeros(2, 1, 4, 4).byte(), "red": torch.full((2, 3, 4, 4), 9).byte()}
    panels = report.image_columns(columns).axes
    assert len(panels) == 4
    assert [panel.get_title() for panel in panels[:2]] == ["grey", "red"]
    assert panels[3].images[0].get_array().shape == (4, 4, 3)


def test_a_picture_is_a_png():
    assert report.png(report.operation_use({"Rotate": 2})).startswith(b"\x89PNG")


def test_pictures_need_no_pyplot():
    code = "import sys, raykb.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
