import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
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


def test_any_figure_is_compared_over_the_seeds_that_both_have():
    results = pd.DataFrame(
        {
            "method": ["a", "a", "a", "b", "b", "c"],
            "seed": [0, 1, 2, 1, 2, 0],
            "loss": [1.0, 2.0, 4.0, 1.0, 2.0, None],
        }
    )
    table = report.comparison(results, subject="a", interval=interval, value="loss")
    assert table["method"].tolist() == ["a", "b"]
    assert table["seeds"].tolist() == [3, 2]
    assert table["difference"].tolist()[1] == pytest.approx(1.5)
    text = report.comparison_text(table, subject="a", heading="loss", scale=1.0)
    assert text.splitlines()[0].split(" | ")[1:3] == ["seeds", " loss"]
    assert [line.split("|")[2].strip() for line in text.splitlines()[2:]] == ["3", "2"]
    assert "+1 to +2" in text
    alone = report.comparison(results, subject="none", interval=interval, value="loss")
    assert alone["difference"].isna().all()


def test_the_comparison_reads_in_percent():
    text = report.comparison_text(compare(RESULTS), subject="searched_policy")
    assert text.splitlines() == [
        "| method          | top-1 % |   sd | searched_policy − method |   95 % interval |",
        "| --------------- | ------: | ---: | -----------------------: | --------------: |",
        "| none            |   81.00 | 1.41 |                    +8.50 | +7.00 to +10.00 |",
        "| cutout          |   85.50 | 0.71 |                    +4.00 |  +3.00 to +5.00 |",
        "| searched_policy |   89.50 | 0.71 |                          |                 |",
    ]


def test_one_training_alone_is_compared_with_nothing():
    table = compare(RESULTS[RESULTS["method"] == "cutout"].head(1))
    text = report.comparison_text(table, subject="cutout")
    assert text.splitlines() == [
        "| method | top-1 % |",
        "| ------ | ------: |",
        "| cutout |   85.00 |",
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


STEP = [  # of two stages and two micro-batches, at a clock that reads 5 s at its start
    [("F", 0, 0, 5.0, 5.1), ("F", 0, 1, 5.1, 5.2), ("B", 0, 0, 5.5, 5.7), ("B", 0, 1, 5.8, 6.0)],
    [("F", 1, 0, 5.1, 5.2), ("B", 1, 0, 5.2, 5.4), ("F", 1, 1, 5.4, 5.5), ("B", 1, 1, 5.5, 5.7)],
]


def boxes(figure: Figure) -> list[tuple[float, float, float]]:
    """Return (row, start, width) of what is drawn, in milliseconds, but for the idle ground."""
    (axes,) = figure.axes
    bars = [bar for container in axes.containers for bar in container.patches]
    return [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in bars]


def test_a_timeline_has_a_box_an_action_from_the_first_one_on():
    figure = report.timeline(STEP)
    expected = [
        (row, 1e3 * (start - 5.0), 1e3 * (end - start))
        for row, spans in enumerate(STEP)
        for *_, start, end in spans
    ]
    for box, place in zip(boxes(figure), expected, strict=True):
        assert box == pytest.approx(place)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0", "1", "0", "1", "0", "0", "1", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stage 0", "stage 1"]
    assert axes.get_xlabel() == "time (ms)"
    assert axes.yaxis_inverted()


def test_a_timeline_tells_its_factors_and_its_colours():
    found = texts(report.timeline(STEP, title="1f1b", factors={"bubble": 2 / 3, "balance": 1.0}))
    assert "1f1b: bubble 0.67 × balance 1.00" in found
    assert "backward" in found
    assert "further" not in found
    assert texts(report.timeline(STEP, factors={"bubble": 0.5})).count("bubble 0.50") == 1


def test_stages_of_one_worker_are_told_apart():
    figure = report.timeline([[("F", 0, 0, 0.0, 1.0), ("F", 1, 0, 1.0, 2.0)]])
    (axes,) = figure.axes
    first, second = (container.patches[0].get_facecolor() for container in axes.containers)
    assert first != second
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worker 0: stages 0, 1"]
    assert "forward, further stages" in texts(figure)


def test_numbers_stand_only_where_they_fit():
    spans = [("F", 0, i, i, i + 1.0) for i in range(300)] + [("B", 0, 0, 300.0, 400.0)]
    (axes,) = report.timeline([spans]).axes
    assert [text.get_text() for text in axes.texts] == ["0"]


@pytest.mark.parametrize("count", [1, 8, 25, 90])
def test_numbers_stay_inside_their_boxes(count):
    spans = [
        (kind, 0, i, 2 * i + b, 2 * i + b + 1.0)
        for i in range(count)
        for b, kind in enumerate("FB")
    ]
    figure = report.timeline([spans, []])
    figure.canvas.draw()
    (axes,) = figure.axes
    drawn = [bar.get_window_extent() for container in axes.containers for bar in container.patches]
    for text in axes.texts:
        words = text.get_window_extent()
        assert any(box.x0 <= words.x0 and words.x1 <= box.x1 for box in drawn)
    assert len(axes.texts) == (2 * count if count < 90 else 0)


def test_a_timeline_of_nothing_is_drawn():
    assert report.png(report.timeline([[], []]))


def curves(methods=("fixmatch", "free"), classes=3, **changes) -> pd.DataFrame:
    rows = [
        {"method": method, "seed": seed, "step": 10 * (step + 1)}
        | {"mask_rate": 0.5, "cluster_size": 7.0, "precision": 0.9, "correct": seed / 2}
        | {f"class_{label}": 1 / classes for label in range(classes)}
        for method in methods
        for seed in range(2)
        for step in range(4)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_pseudo_labels_are_drawn_as_means_with_the_range_of_the_seeds():
    figure = report.pseudo_labels(curves())
    axes = [panel for panel in figure.axes if panel.lines]
    assert len(axes) == 4
    correct = axes[1]
    assert correct.get_title(loc="left") == "of all: share that is right"
    assert [line.get_ydata().tolist() for line in correct.lines] == [[0.25] * 4] * 2
    assert correct.lines[0].get_xdata().tolist() == [10, 20, 30, 40]
    band = correct.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.0, 0.5)
    assert axes[3].get_ylim()[1] > 7.0
    assert "free" in texts(figure)


def test_without_true_labels_there_are_two_panels():
    figure = report.pseudo_labels(curves().drop(columns=["precision", "correct"]))
    assert len(figure.axes) == 2


def test_the_class_histogram_has_a_row_for_each_class():
    even = curves(methods=["fixmatch"]).assign(class_2=[0.1, 0.2, 0.3, 0.4] * 2)
    figure = report.class_histogram(even, ["a", "b", "c"])
    panel = figure.axes[0]
    values = panel.collections[0].get_array()
    assert values.shape == (3, 4)
    assert values[2].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b", "c"]
    assert "even: 0.333" in texts(figure)


def test_the_confusion_is_in_percent_of_the_true_class():
    matrix = torch.tensor([[3, 1, 0], [0, 8, 0], [0, 0, 0]]).numpy()
    figure = report.confusion({"fixmatch": matrix, "uda": matrix.T}, ["a", "b", "c"])
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == ["75", "25", "100"]
    assert [text.get_text() for text in second.texts] == ["100", "11", "89"]
    assert first.get_images()[0].get_array()[0].tolist() == [75.0, 25.0, 0.0]


@pytest.mark.parametrize("methods", [1, 3])
def test_a_confusion_lies_within_its_picture(methods):
    matrices = {f"method {number}": torch.eye(6).numpy() for number in range(methods)}
    figure = report.confusion(matrices, [f"class {number}" for number in range(6)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert 0 < drawn.x0 < drawn.x1 < width
    assert 0 < drawn.y0 < drawn.y1 < height


def test_a_confusion_of_many_classes_is_drawn_without_numbers_and_names():
    figure = report.confusion({"uda": torch.eye(100).numpy()}, [str(n) for n in range(100)])
    (panel,) = figure.axes
    assert not panel.texts
    assert report.png(figure)


def test_a_picture_is_a_png():
    assert report.png(report.operation_use({"Rotate": 2})).startswith(b"\x89PNG")


def test_pictures_need_no_pyplot():
    code = "import sys, raykb.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
