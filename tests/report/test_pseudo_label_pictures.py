import io
import json

import pandas as pd
import pytest
from shared_pictures import texts

from raykb.report.pseudo_labels import Told, class_histogram, pseudo_labels, told_of


def curves(labels=("fixmatch", "free"), classes=3, **changes) -> pd.DataFrame:
    rows = [
        {"label": label, "seed": seed, "step": 10 * (step + 1)}
        | {"mask_rate": 0.5, "cluster_size": 7.0, "precision": 0.9, "correct": seed / 2}
        | {f"class_{number}": 1 / classes for number in range(classes)}
        for label in labels
        for seed in range(2)
        for step in range(4)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_pseudo_labels_are_drawn_as_means_with_the_range_of_the_seeds():
    figure = pseudo_labels(curves())
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
    figure = pseudo_labels(curves().drop(columns=["precision", "correct"]))
    assert len(figure.axes) == 2


def test_the_class_histogram_has_a_row_for_each_class():
    even = curves(labels=["fixmatch"]).assign(class_2=[0.1, 0.2, 0.3, 0.4] * 2)
    figure = class_histogram(even, ["a", "b", "c"])
    panel = figure.axes[0]
    values = panel.collections[0].get_array()
    assert values.shape == (3, 4)
    assert values[2].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a", "b", "c"]
    assert "even: 0.333" in texts(figure)


def told(label, seed, pseudo_labels=True):
    """Return a training of 20 steps, logged at 10, 19 and 20."""
    record = [(10, 0.1), (19, 0.5), (20, 0.5 + seed / 5)]
    names = ["train/pseudo_label_accuracy", "train/cluster_size", "train/mask_rate"]
    names += [f"train/class_share/{number}" for number in range(2)]
    history = dict.fromkeys(names, record) if pseudo_labels else {}
    metrics = {"test/top1": 0.8, "test/loss": 0.7}
    details = {"confusion": [[3, 1], [0, 4]]}
    return Told(label, seed, metrics, details, history | {"train/loss": record}, 20)


@pytest.fixture(scope="module")
def found():
    """What three trainings tell, one of them without pseudo-labels."""
    trainings = [told("none", 0, pseudo_labels=False), told("free/match", 0), told("free/match", 1)]
    return told_of(trainings, ["cat", "dog"])


def test_a_training_s_row_has_its_metrics_and_the_last_tenth_of_its_pseudo_labels(found):
    own = {"test/top1": 0.8, "test/loss": 0.7}
    assert found.rows[0] == {"label": "none", "seed": 0} | own
    late = {"pseudo_labels/correct", "pseudo_labels/cluster_size", "pseudo_labels/mask_rate"}
    for seed, row in enumerate(found.rows[1:]):
        figures = dict.fromkeys(late, pytest.approx(0.5 + seed / 10))
        assert row == {"label": "free/match", "seed": seed} | own | figures


def test_confusion_is_summed_over_the_seeds_of_a_label(found):
    assert json.loads(found.files["confusion.json"]) == {
        "schema": 1,
        "classes": ["cat", "dog"],
        "sums": {"none": [[3, 1], [0, 4]], "free/match": [[6, 2], [0, 8]]},
    }
    table = pd.read_csv(io.StringIO(found.files["class_accuracy.csv"]), keep_default_na=False)
    assert table["label"].tolist() == ["none", "none", "free/match", "free/match"]
    assert table["images"].tolist() == [4, 4, 8, 8]
    assert table["accuracy"].tolist() == [0.75, 1.0, 0.75, 1.0]


def test_there_are_pictures_of_pseudo_labels_only_where_there_are_any(found):
    alone = told_of([told("none", 0, pseudo_labels=False)], ["cat", "dog"]).files
    assert set(alone) == {"class_accuracy.csv", "confusion.json", "confusion.png"}
    assert set(found.files) - set(alone) == {"pseudo_labels.png", "class_histogram.png"}
    pictures = [content for name, content in found.files.items() if name.endswith(".png")]
    assert all(content.startswith(b"\x89PNG") for content in pictures)
