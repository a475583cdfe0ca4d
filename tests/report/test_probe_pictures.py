import numpy as np
from matplotlib.colors import to_hex
from shared_pictures import texts

from raykb.report.figures import GREEN, GREY, RED
from raykb.report.probes import neighbours, probe_curves
from raykb.report.told import Told

NAME = "test/knn/top1"


def told(label, seed, end, curve=(), steps=10):
    history = {"valid/knn/top1": list(curve)}
    return Told(label, seed, {NAME: end}, {}, history if steps else {}, steps)


def test_curves_go_from_the_initial_weights_over_all_evaluations_to_the_end():
    trainings = [
        told("random", 0, 0.2, steps=0),
        told("random", 1, 0.4, steps=0),
        told("byol", 0, 0.7, [(5, 0.5)]),
        told("byol", 1, 0.9, [(5, 0.7)]),
    ]
    figure = probe_curves(trainings, NAME)
    (axes,) = figure.axes
    level, curve = axes.lines
    assert np.allclose(level.get_ydata(), 30.0)
    assert curve.get_xdata().tolist() == [0, 5, 10]
    assert np.allclose(curve.get_ydata(), [30.0, 60.0, 80.0])
    found = texts(figure)
    assert "random" in found
    assert "byol" in found
    assert "kNN top-1 %" in found


def test_more_lines_than_colours_have_no_bands_and_a_legend_beside_with_the_best_first():
    names = [f"m{number}" for number in range(9)]
    trainings = [told(name, 0, 0.1 * place, [(5, 0.5)]) for place, name in enumerate(names)]
    axes = probe_curves(trainings, NAME).axes[0]
    assert not axes.collections
    assert [text.get_text() for text in axes.get_legend().get_texts()] == names[::-1]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(names)


def test_where_there_are_several_initial_weights_each_has_a_level():
    trainings = [told(f"random_{n}", 0, 0.1 * n, steps=0) for n in (1, 2)]
    figure = probe_curves([*trainings, told("wide", 0, 0.7, [(5, 0.5)])], NAME)
    *levels, curve = figure.axes[0].lines
    assert [line.get_label() for line in levels] == ["random 1", "random 2"]
    assert curve.get_xdata().tolist() == [5, 10]


def test_neighbours_stand_beside_their_image_and_the_frame_says_if_the_class_is_its_own():
    train = np.zeros((4, 1, 6, 6), np.uint8), np.array([0, 1, 1, 0])
    test = np.zeros((3, 1, 6, 6), np.uint8), np.array([1, 0, 1])
    found = {"queries": [0, 2], "nearest": [[1, 3], [2, 0]]}
    figure = neighbours(found, train, test, ["cat", "dog"], title="byol")
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.texts]
    assert names == ["dog", "dog", "cat", "dog", "dog", "cat"]
    frames = [to_hex(frame.get_edgecolor()).upper() for frame in axes.patches]
    assert frames == [GREY, GREEN, RED, GREY, GREEN, RED]
    assert len(axes.images) == 6
    assert "byol" in texts(figure)


def test_colour_images_are_drawn_in_colour():
    images = np.zeros((2, 3, 6, 6), np.uint8), np.array([0, 0])
    figure = neighbours({"queries": [0], "nearest": [[1]]}, images, images, ["cat"], title="x")
    assert figure.axes[0].images[0].get_array().shape == (6, 6, 3)
