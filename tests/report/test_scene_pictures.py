import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from shared_pictures import texts

from raykb.report.figures import GREEN, RED, SKY
from raykb.report.scenes import scenes

CLASSES = ["cat", "dog", "bird"]
BOXES = np.array([[[0, 0, 4, 4], [4, 5, 8, 8]], [[1, 2, 5, 4], [-1, -1, -1, -1]]], np.float32)
LABELS = np.array([[0, 1], [2, -1]])


def framed(figure, colour):
    """Return the rectangles of a colour: left, top, width and height in sides of a scene."""
    patches = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    own = [p for p in patches if to_hex(p.get_edgecolor()) == colour.lower()]
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in own]


@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_that_are_there_are_drawn_with_the_names_of_their_classes(channels):
    images = np.zeros((2, channels, 8, 8), np.uint8)
    figure = scenes(images, BOXES, LABELS, CLASSES, title="both")
    first, second, third = framed(figure, SKY)
    assert first == (0, 0, 0.5, 0.5)
    assert second == (0.5, 0.625, 0.5, 0.375)
    assert third == pytest.approx((1.12 + 0.125, 0.25, 0.5, 0.25))
    assert {"both", "cat", "dog", "bird"} <= set(texts(figure).splitlines())


def test_what_is_found_is_green_where_its_class_is_there():
    images, found = np.zeros((6, 1, 8, 8), np.uint8), np.tile([0.0, 0, 8, 4], (6, 1))
    boxes, labels = np.tile(BOXES[:1], (6, 1, 1)), np.tile(LABELS[:1], (6, 1))
    figure = scenes(images, boxes, labels, CLASSES, title="x", found=(found, [1, 2, 2, 2, 2, 2]))
    assert framed(figure, GREEN) == [(0, 0, 1, 0.5)]
    red = framed(figure, RED)
    assert len(red) == 5
    assert red[-1] == pytest.approx((1.12, 1.12, 1, 0.5))
