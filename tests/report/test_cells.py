import pytest
from matplotlib.text import Annotation

from raykb.report import cells, png

EDGES = {
    "reduction": [("n1", "s0", "conv_3"), ("n3", "n1", "identity")],
    "encoder_normal": [("n0", "s1", "avg_pool_3"), ("n2", "n0", "conv_3")],
    "expansion": [("n1", "s0", "identity")],
    "decoder_normal": [("n3", "s1", "identity")],
}


@pytest.fixture(scope="module")
def figure():
    return cells(EDGES, title="two_path_1")


def words(panel):
    return {text.get_text() for text in panel.texts} - {""}


def arrows(panel):
    found = [text for text in panel.texts if isinstance(text, Annotation)]
    return [(arrow.arrow_patch.get_edgecolor(), arrow.xyann, arrow.xy) for arrow in found]


def test_a_panel_has_the_boxes_of_a_cell_and_an_arrow_for_each_edge(figure):
    panels = dict(zip(EDGES, figure.axes, strict=True))
    assert words(panels["reduction"]) == {"s0", "s1", "n1", "n3", "out"}
    assert words(panels["encoder_normal"]) == {"s0", "s1", "n0", "n2", "out"}
    counts = {kind: len(arrows(panel)) for kind, panel in panels.items()}
    assert counts == {  # edges, and what is concatenated
        "reduction": 2 + 2,
        "encoder_normal": 2 + 1,
        "expansion": 1 + 1,
        "decoder_normal": 1 + 1,
    }


def test_equal_operations_have_one_colour_and_others_another(figure):
    reduction, _, expansion, _ = map(arrows, figure.axes)
    (conv, *_), (identity, *_) = reduction[:2]
    assert conv != identity
    assert expansion[0][0] == identity


def test_the_legend_names_what_there_is_and_a_picture_can_be_written(figure):
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["identity", "avg pool 3", "conv 3", "concatenated"]
    assert png(figure).startswith(b"\x89PNG")
