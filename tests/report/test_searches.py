import pytest

from raykb.report import Told, png, searches


def told(label, seed, **history):
    names = {
        "dice": "valid/dice",
        "one": "valid/search/entropy_reduction",
        "two": "valid/search/entropy_expansion",
        "cost": "valid/search/expected_cost",
    }
    return Told(label, seed, {}, {}, {names[name]: own for name, own in history.items()}, 4)


def test_each_search_has_a_line_a_panel_and_entropies_are_averaged():
    first = told(
        "two_path",
        0,
        dice=[(2, 0.25), (4, 0.5)],
        one=[(2, 1.0), (4, 0.5)],
        two=[(2, 2.0), (4, 1.5)],
        cost=[(2, 0.4), (4, 0.3)],
    )
    figure = searches([first, told("two_path", 1, dice=[(2, 0.1)])])
    lines = [panel.lines for panel in figure.axes]
    assert [len(own) for own in lines] == [2, 2, 2]
    assert [list(own[0].get_ydata()) for own in lines] == [[0.25, 0.5], [1.5, 1.0], [0.4, 0.3]]
    assert [list(own[1].get_xdata()) for own in lines] == [[2], [], []]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "two path 0",
        "two path 1",
    ]
    assert lines[0][0].get_color() != lines[0][1].get_color()


@pytest.mark.parametrize("count", [1, 7])
def test_it_can_be_written_of_any_number_of_searches(count):
    figure = searches([told("two_path", n, dice=[(1, 0.5)]) for n in range(count)])
    assert png(figure).startswith(b"\x89PNG")
