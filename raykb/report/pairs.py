"""What captions and pictures find, and where in a picture a caption's words are."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raykb.report.figures import GREEN, GREY, RED

SIDE = 0.9  # of a picture, in inches
STEP = 1.1  # from a picture to the next, in sides of one
ROW = 1.25  # from a row with names above its pictures to the next, likewise
TEXT = 2.3  # width of a caption, likewise
DARK = 0.15  # what is left of the light where no share of a word is
_HEAD = 0.3  # height above the first row, likewise
_LETTERS = 29  # of a line of a caption
_WORDS = 7  # of a caption that are shown


def retrieved(
    found: Mapping[str, Sequence[Any]],
    images: np.ndarray,
    captions: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw pairs, one a row: caption and picture, the pictures it finds, and the captions that it.

    What has the same caption is green, what has another one red.

    Args:
        found: rows of ``queries``, and of each those of the ``nearest`` images and best ``texts``.
        images: (N, C, H, W) uint8.
        captions: (N,) of each.
        title: of the picture.
    """
    count, rows = len(found["nearest"][0]), len(found["queries"])
    beside = TEXT + STEP * (1 + count) + 0.3  # where the captions begin that a picture finds
    width = beside + TEXT
    figure, axes = _canvas(width, STEP * rows, title)
    heads = {0.0: "caption", TEXT: "its picture", TEXT + STEP + 0.1: "pictures that it finds"}
    for left, text in (heads | {beside: "captions that the picture finds"}).items():
        axes.text(left, -0.12, text, fontsize=7, color=GREY)
    for row, query in enumerate(found["queries"]):
        own, top = captions[query], STEP * row
        _write(axes, 0.0, top + 0.5, own, "black", lines=4)
        _picture(axes, (TEXT, top), images[query], GREY)
        for place, other in enumerate(found["nearest"][row], 1):
            corner = TEXT + STEP * place + 0.1, top
            _picture(axes, corner, images[other], GREEN if captions[other] == own else RED)
        for place, other in enumerate(found["texts"][row]):
            colour = GREEN if captions[other] == own else RED
            middle = top + (place + 0.5) / len(found["texts"][row])
            _write(axes, beside, middle, captions[other], colour, lines=2)
    _cut(axes, width, STEP * rows)
    return figure


def aligned(
    found: Mapping[str, Sequence[Any]],
    images: np.ndarray,
    decode: Callable[[np.ndarray], str],
    *,
    title: str,
) -> Figure:
    """Draw pictures, and beside each what of it the words of its caption are moved onto.

    The brighter a patch, the larger is its share of the word, and the largest is as bright as the
    picture; punctuation is left out.

    Args:
        found: rows of ``queries``, and of each its ``words``, which have ``tokens`` and ``plan``.
        images: (N, C, H, W) uint8.
        decode: makes a text of tokens.
        title: of the picture.
    """
    rows = [_named(words, decode)[:_WORDS] for words in found["words"]]
    width = STEP * (1 + max(map(len, rows)))
    figure, axes = _canvas(width, ROW * len(rows), title)
    for row, (query, words) in enumerate(zip(found["queries"], rows, strict=True)):
        top = ROW * row
        _picture(axes, (0.0, top), images[query], GREY)
        for place, (name, plan) in enumerate(words, 1):
            left = STEP * place
            _picture(axes, (left, top), _lit(images[query], plan), GREY)
            axes.text(left + 0.5, top - 0.04, name, fontsize=6.5, ha="center", va="bottom")
    _cut(axes, width, ROW * len(rows))
    return figure


def _lit(image: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W), each patch of it as bright as its share of a plan (h, w)."""
    _, height, width = image.shape
    rows, columns = plan.shape
    shares = plan.repeat(height // rows, 0).repeat(width // columns, 1) / plan.max().clip(1e-12)
    lit: np.ndarray = (image * (DARK + (1 - DARK) * shares)).astype(np.uint8)
    return lit


def _named(
    words: Sequence[Mapping[str, Any]], decode: Callable[[np.ndarray], str]
) -> list[tuple[str, np.ndarray]]:
    """Return text and plan of what are words of letters or digits."""
    texts = [(decode(np.array(word["tokens"])), np.array(word["plan"])) for word in words]
    return [(text, plan) for text, plan in texts if any(map(str.isalnum, text))]


def _canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure of so many sides of a picture, with one bare diagram for all."""
    size = (SIDE * width + 0.2, SIDE * (height + _HEAD) + 0.2)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(title, fontsize=8)
    return figure, axes


def _cut(axes: Axes, width: float, height: float) -> None:
    """Show all that was drawn, which each picture has changed."""
    axes.set(xlim=(-0.05, width), ylim=(height - 0.05, -_HEAD))


def _picture(axes: Axes, corner: tuple[float, float], image: np.ndarray, colour: str) -> None:
    """Draw an image (C, H, W) of side 1 with a frame."""
    left, top = corner
    shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, top + 1, top))
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=1.5))


def _write(axes: Axes, left: float, middle: float, text: str, colour: str, *, lines: int) -> None:
    """Write the beginning of a caption, as much as so many lines hold."""
    cut = textwrap.wrap(text, _LETTERS, max_lines=lines, placeholder=" …")
    axes.text(left, middle, "\n".join(cut), fontsize=6.5, color=colour, va="center")
