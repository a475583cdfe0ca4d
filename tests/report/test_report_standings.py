import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from shared_pictures import texts

from raykb.report import Standings, png

PROBE, KNN, LOSS = "test/linear_probe/top1", "test/knn/top1", "test/loss"
TASKS = {"classification": [PROBE, KNN], "fit_of_data": [LOSS]}

HEAD = ["method", "classification z", "fit_of_data z", "overall z"]
HEAD += ["mean rank", "seeds won", "P(first)"]


def row(label, seed, probe=None, knn=None, loss=None, **costs):
    return {"label": label, "seed": seed, PROBE: probe, KNN: knn, LOSS: loss} | costs


ROWS = [  # z is -1.22, 0, 1.22 in each setting
    row("simclr", 0, 0.5, 0.2, 3.0, seconds=10.0, parameters=1000),
    row("moco_v2", 0, 0.7, 0.4, 1.0, seconds=1000.0, parameters=2000),
    row("byol", 0, 0.6, 0.3, 2.0, seconds=100.0, parameters=3000),
]


def stood(rows=ROWS, tasks=TASKS, **settings):
    return Standings(rows, over="method", tasks=tasks, **settings)


def cells(text):
    lines = text.split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "---" not in line]


def drawn(count, crowd=False):
    """Return rows all over the place, or in a crowd with one far from it."""
    rng = np.random.default_rng(0)
    spread = 0.01 if crowd else 0.5
    places = [(0.2 + spread * rng.random(3), spread * rng.normal()) for _ in range(count - 1)]
    places.append((np.full(3, 0.9), 2.0))
    return [row(f"method_{n}", 0, *own, seconds=10**cost) for n, (own, cost) in enumerate(places)]


# ---------------------------------------------------------------------- text


def test_the_best_comes_first_with_z_by_task_and_overall():
    assert cells(stood().text()) == [
        HEAD,
        ["moco_v2", "+1.22", "+1.22", "+1.22", "1.00", "1 of 1", "–"],
        ["byol", "+0.00", "+0.00", "+0.00", "2.00", "0 of 1", "–"],
        ["simclr", "-1.22", "-1.22", "-1.22", "3.00", "0 of 1", "–"],
    ]
    parts = stood().text().split("\n\n")[1:]
    assert parts[0].startswith("z: how many standard deviations (ddof 0)")
    assert parts[1:] == [f"classification: {PROBE}, {KNN}; fit_of_data: {LOSS}"]


def test_over_seeds_it_says_who_won_how_many_and_who_is_first_how_probably():
    values = {"a": (3, 0), "b": (1, 1)}  # a is first of seeds (0, 0) and (0, 1), b of (1, 1)
    rows = [
        {"label": x, "seed": s, PROBE: v} for x, own in values.items() for s, v in enumerate(own)
    ]
    a, b = cells(stood(rows, {"probe": [PROBE]}).text())[1:]
    assert a[:-1] == ["a", "+1.00", "+1.00", "1.00", "1 of 2"]
    assert float(a[-1]) == pytest.approx(0.75, abs=0.05)
    assert float(a[-1]) + float(b[-1]) == pytest.approx(1.0, abs=0.011)


def test_labels_with_missing_cells_come_last_and_the_cells_are_named():
    rows = [*ROWS, row("dino", 0, 0.9, math.nan, 0.5), row("mae", 0, math.inf, 0.9, None)]
    found = stood(rows, labels=["mae", "dino", "swav", "moco_v2", "byol", "simclr"])
    assert found.labels == ["moco_v2", "byol", "simclr", "mae", "dino", "swav"]
    assert cells(found.text())[-3:] == [
        ["mae", *["–"] * 6],
        ["dino", "–", cells(found.text())[-2][2], *["–"] * 4],
        ["swav", *["–"] * 6],
    ]
    assert found.missing == [f"mae ({PROBE}, {LOSS})", f"dino ({KNN})", "swav"]
    told = f"Missing, and in no mean: mae ({PROBE}, {LOSS}); dino ({KNN}); swav. Only who has all"
    assert told in found.text()


def test_a_training_that_is_not_there_is_named_and_leaves_its_label_overall():
    rows = [{"label": x, "seed": s, PROBE: 0.1 * s, KNN: 0.5} for x in "ab" for s in range(2)]
    rows[1][KNN] = None
    found = stood(rows, {"probing": [PROBE, KNN]}, seeds=3)
    assert found.missing == [f"a/seed-1 ({KNN})", "a/seed-2", "b/seed-2"]
    assert all(line[-2] == "0.5 of 1" for line in cells(found.text())[1:])


def test_a_setting_that_orders_nobody_is_told():
    rows = [each | {KNN: 0.4} for each in ROWS]
    assert f"{KNN}: all labels tie, so that z is 0" in stood(rows).text().split("\n\n")


def test_labels_that_tie_keep_their_order():
    rows = [{"label": x, "seed": 0, PROBE: 0.1, KNN: 0.2} for x in ("b", "c", "a")]
    assert stood(rows, {"probing": [PROBE, KNN]}).labels == ["b", "c", "a"]


def test_of_nothing_there_are_dashes_alone():
    found = stood([], labels=["a", "b"], seeds=2)
    assert cells(found.text())[1:] == [["a", *["–"] * 6], ["b", *["–"] * 6]]
    assert found.missing == ["a", "b"]


def test_what_cannot_stand_is_refused():
    with pytest.raises(ValueError, match="label 'simclr': must be one of byol, moco_v2"):
        stood(labels=["byol", "moco_v2"])
    with pytest.raises(ValueError, match="two are of byol/seed-0"):
        stood([*ROWS, ROWS[-1]])


# ---------------------------------------------------------------------- summary


def test_the_summary_is_json_with_none_for_what_is_missing():
    found = stood([*ROWS, row("dino", 0, 0.6)])
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert (summary["schema"], summary["over"], summary["tasks"]) == (1, "method", TASKS)
    assert [each["label"] for each in summary["overall"]] == ["moco_v2", "byol", "simclr", "dino"]
    assert summary["overall"][-1] == {"label": "dino"} | dict.fromkeys(
        ("z", "mean_rank", "won", "first")
    )
    assert summary["overall"][0]["mean_rank"] == 1.0
    lowest = {"label": "simclr", "setting": KNN, "mean": 0.2, "z": pytest.approx(-1.224745)}
    assert lowest | {"seeds": 1} in summary["cells"]
    assert {"label": "dino", "setting": KNN, "mean": None, "z": None, "seeds": 0} in summary[
        "cells"
    ]
    assert {"label": "dino", "task": "fit_of_data", "z": None} in summary["by_task"]
    assert len(summary["cells"]) == 4 * 3
    assert (summary["missing"], summary["cautions"]) == ([f"dino ({KNN}, {LOSS})"], [])
    assert summary["paired_seeds"] == 1


# ---------------------------------------------------------------------- pictures


def test_the_heat_map_shows_each_score_as_its_metric_is_shown_and_hatches_what_is_missing():
    figure = stood([*ROWS, row("dino", 0, 0.9, None, 0.5)]).heat_map()
    axes, bar = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["moco v2", "byol", "simclr", "dino"]
    headings = [text.get_text() for text in axes.get_xticklabels()]
    assert headings == ["linear probe top-1 %", "kNN top-1 %", "loss"]
    assert [t.get_text() for t in axes.texts][:3] == ["70.00", "40.00", "1"]
    assert len(axes.texts) == 4 * 3 - 1
    (hole,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (hole.get_xy(), hole.get_hatch()) == ((0.5, 2.5), "////")
    assert "classification" in texts(figure)
    assert "fit of data" in texts(figure)
    assert bar.get_ylabel() == "z in the setting"


def test_colours_have_their_middle_at_0_and_blue_is_better():
    (image,) = stood().heat_map().axes[0].images
    low, high = image.get_clim()
    assert (low, high) == (pytest.approx(-1.224745), pytest.approx(1.224745))
    best, middle, worst = image.to_rgba(image.get_array())[:, 2]  # of the loss
    assert best[2] > best[0]
    assert worst[0] > worst[2]
    assert min(middle[:3]) > 0.95


def test_a_heat_map_of_nothing_has_holes_alone():
    axes = stood([], labels=["a", "b"], seeds=1).heat_map().axes[0]
    assert len(axes.patches) == 6
    assert not axes.texts


@pytest.mark.parametrize(
    ("settings", "x", "named"),
    [
        ({}, [1000.0, 100.0, 10.0], "seconds of training"),
        ({"cost": "parameters"}, [2000, 3000, 1000], "parameters"),
    ],
)
def test_each_label_stands_at_its_cost_and_its_z(settings, x, named):
    (axes,) = stood().cost(**settings).axes
    points = axes.lines[1]
    assert points.get_xdata() == pytest.approx(x)
    assert points.get_ydata() == pytest.approx([1.224745, 0.0, -1.224745], abs=1e-6)
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", named, "overall z")
    assert [text.get_text() for text in axes.texts] == ["moco v2", "byol", "simclr"]


def test_a_cost_is_the_mean_over_seeds():
    rows = [
        {"label": x, "seed": s, PROBE: n, "seconds": 10.0 * (s + 1)}
        for n, x in enumerate("ab")
        for s in range(3)
    ]
    (axes,) = stood(rows, {"probe": [PROBE]}).cost().axes
    assert axes.lines[1].get_xdata() == pytest.approx([20.0, 20.0])


def test_the_cost_of_one_task_is_of_those_that_have_it_and_others_are_named():
    rows = [*ROWS, row("dino", 0, 0.9, None, 0.5, seconds=5.0), row("mae", 0, 0.4, 0.4, 0.6)]
    (axes,) = stood(rows).cost(task="fit_of_data").axes
    assert axes.texts[-1].get_text() == "dino"
    assert axes.get_ylabel() == "z of fit of data"
    assert axes.get_title(loc="left") == "not drawn, for want of a z or a cost: mae"
    (overall,) = stood(rows).cost().axes
    assert overall.get_title(loc="left").endswith(": mae, dino")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(
        ValueError, match="task='fit': must be one of classification, fit_of_data, or"
    ):
        stood().cost(task="fit")
    with pytest.raises(ValueError, match="cost='watts', task=None: no label has both"):
        stood().cost(cost="watts")


@pytest.mark.parametrize("count", [5, 15])
@pytest.mark.parametrize("crowd", [False, True])
def test_no_name_hides_a_point_or_another_name_even_in_a_crowd(count, crowd):
    figure = stood(drawn(count, crowd)).cost()
    png(figure)  # as it is written
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == count
    points = axes.transData.transform(axes.lines[1].get_xydata())
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*point) for box, point in itertools.product(boxes, points))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_a_name_that_is_far_has_a_line_to_its_point():
    (axes,) = stood(drawn(15, crowd=True)).cost().axes
    assert any(text.arrow_patch is not None for text in axes.texts)
    (apart,) = stood().cost().axes
    assert all(text.arrow_patch is None for text in apart.texts)
