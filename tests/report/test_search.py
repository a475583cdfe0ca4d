import pandas as pd
from shared_pictures import texts

from raykb.report.figures import png
from raykb.report.search import operation_use, search_history


def history(**changes) -> pd.DataFrame:
    rows = [
        {"split": split, "round": turn, "number": n, "status": "finished", "reward": n % 7 / 10}
        for split in range(3)
        for turn in range(2)
        for n in range(20)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_a_history_has_a_column_a_split_and_a_row_a_round():
    figure = search_history(history(), "max_accuracy")
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
    figure = search_history(part, "max_accuracy")
    stopped, scored, best = figure.axes[0].lines
    assert list(stopped.get_ydata()) == [0.99]
    assert len(scored.get_xdata()) == 18
    assert max(best.get_ydata()) == 0.5
    assert "stopped early" in texts(figure)


def test_a_history_without_a_single_score_is_drawn():
    figure = search_history(history(status="failed", reward=float("nan")), "max_accuracy")
    assert png(figure)


def test_operations_are_drawn_by_use_beside_an_even_share():
    figure = operation_use({"Rotate": 2, "Invert": 10, "Cutout": 0})
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0, 2, 10]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Cutout", "Rotate", "Invert"]
    assert "even share, 4.0" in texts(figure)


def test_a_picture_is_a_png():
    assert png(operation_use({"Rotate": 2})).startswith(b"\x89PNG")
