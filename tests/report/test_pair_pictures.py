import numpy as np
from matplotlib.colors import to_hex
from shared_pictures import texts

from raykb.report.figures import GREEN, GREY, RED
from raykb.report.pairs import aligned, retrieved

IMAGES = np.zeros((3, 3, 4, 4), np.uint8)


def test_what_has_the_same_caption_is_green_and_all_else_red():
    found = {"queries": [0, 2], "nearest": [[1, 2], [0, 2]], "texts": [[2, 0], [2, 0]]}
    figure = retrieved(found, IMAGES, ["an owl", "an owl", "a cat"], title="vilt")
    (axes,) = figure.axes
    frames = [to_hex(patch.get_edgecolor()).upper() for patch in axes.patches]
    assert frames == [GREY, GREEN, RED, GREY, RED, GREEN]
    written = [(text.get_text(), text.get_color()) for text in axes.texts[4:]]
    first = [("an owl", "black"), ("a cat", RED), ("an owl", GREEN)]
    assert written == [*first, ("a cat", "black"), ("a cat", GREEN), ("an owl", RED)]
    assert all(name in texts(figure) for name in ("vilt", "its picture"))


def test_each_word_has_its_plan_over_the_picture_and_punctuation_none():
    images, plan = np.full((3, 1, 4, 4), 200, np.uint8), [[0.0, 0.2], [0.3, 0.4]]
    words = [{"tokens": [token], "plan": plan} for token in (5, 6, 7)]
    names = {5: "owl", 6: ",", 7: "night"}
    found = {"queries": [1], "words": [words]}
    figure = aligned(found, images, lambda tokens: names[tokens[0]], title="vilt")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["owl", "night"]
    whole, *lit = [image.get_array() for image in axes.images]
    assert (whole == 200).all()
    for shown in lit:  # the largest share is as bright as the picture
        assert np.allclose(shown[1::2, 1::2], [[30, 115], [157, 200]], atol=1)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is at the top
