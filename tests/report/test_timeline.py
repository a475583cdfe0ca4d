import pytest
from matplotlib.figure import Figure
from shared_pictures import texts

from raykb.report.figures import png
from raykb.report.timeline import timeline

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
    figure = timeline(STEP)
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
    found = texts(timeline(STEP, title="1f1b", factors={"bubble": 2 / 3, "balance": 1.0}))
    assert "1f1b: bubble 0.67 × balance 1.00" in found
    assert "backward" in found
    assert "further" not in found
    assert texts(timeline(STEP, factors={"bubble": 0.5})).count("bubble 0.50") == 1


def test_stages_of_one_worker_are_told_apart():
    figure = timeline([[("F", 0, 0, 0.0, 1.0), ("F", 1, 0, 1.0, 2.0)]])
    (axes,) = figure.axes
    first, second = (container.patches[0].get_facecolor() for container in axes.containers)
    assert first != second
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worker 0: stages 0, 1"]
    assert "forward, further stages" in texts(figure)


def test_a_backward_pass_in_two_parts_has_two_colours():
    passes = [("F", 1, 0, 0.0, 1.0), ("I", 1, 0, 1.0, 2.0), ("W", 1, 0, 2.0, 3.0)]
    figure = timeline([passes])
    (axes,) = figure.axes
    colours = {container.patches[0].get_facecolor() for container in axes.containers}
    assert len(colours) == 3
    found = texts(figure)
    assert "backward, inputs" in found
    assert "backward, weights" in found


def test_numbers_stand_only_where_they_fit():
    spans = [("F", 0, i, i, i + 1.0) for i in range(300)] + [("B", 0, 0, 300.0, 400.0)]
    (axes,) = timeline([spans]).axes
    assert [text.get_text() for text in axes.texts] == ["0"]


@pytest.mark.parametrize("count", [1, 8, 25, 90])
def test_numbers_stay_inside_their_boxes(count):
    spans = [
        (kind, 0, i, 2 * i + b, 2 * i + b + 1.0)
        for i in range(count)
        for b, kind in enumerate("FB")
    ]
    figure = timeline([spans, []])
    figure.canvas.draw()
    (axes,) = figure.axes
    drawn = [bar.get_window_extent() for container in axes.containers for bar in container.patches]
    for text in axes.texts:
        words = text.get_window_extent()
        assert any(box.x0 <= words.x0 and words.x1 <= box.x1 for box in drawn)
    assert len(axes.texts) == (2 * count if count < 90 else 0)


def test_a_timeline_of_nothing_is_drawn():
    assert png(timeline([[], []]))
