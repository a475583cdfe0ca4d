import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from raykb.report.confusion import class_accuracy, confusion
from raykb.report.figures import png


def test_the_confusion_is_in_percent_of_the_true_class():
    matrix = torch.tensor([[3, 1, 0], [0, 8, 0], [0, 0, 0]]).numpy()
    figure = confusion({"fixmatch": matrix, "uda": matrix.T}, ["a", "b", "c"])
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == ["75", "25", "100"]
    assert [text.get_text() for text in second.texts] == ["100", "11", "89"]
    assert first.get_images()[0].get_array()[0].tolist() == [75.0, 25.0, 0.0]


@pytest.mark.parametrize("methods", [1, 3])
def test_a_confusion_lies_within_its_picture(methods):
    matrices = {f"method {number}": torch.eye(6).numpy() for number in range(methods)}
    figure = confusion(matrices, [f"class {number}" for number in range(6)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert 0 < drawn.x0 < drawn.x1 < width
    assert 0 < drawn.y0 < drawn.y1 < height


def test_a_confusion_of_many_classes_is_drawn_without_numbers_and_names():
    figure = confusion({"uda": torch.eye(100).numpy()}, [str(n) for n in range(100)])
    (panel,) = figure.axes
    assert not panel.texts
    assert png(figure)


def test_a_class_without_images_has_no_accuracy():
    matrix = torch.tensor([[3, 1], [0, 0]]).numpy()
    first, second = class_accuracy({"uda": matrix}, ["a", "b"]).to_dict("records")
    assert first == {"label": "uda", "class": "a", "images": 4, "accuracy": 0.75}
    assert second["images"] == 0
    assert pd.isna(second["accuracy"])
