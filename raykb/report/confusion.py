"""Which classes are recognised, and which are taken for which."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure


def confusion(matrices: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """Draw confusion matrices: a row a true class, in percent of its images; a panel a label.

    Args:
        matrices: of each label an array (C, C): how often the class of the row was taken for that
            of the column.
        classes: their names.
    """
    count, named = len(classes), len(classes) <= 30
    side = 1.0 + 0.36 * min(count, 30)
    figure = Figure(figsize=(1.4 + side * len(matrices), side + 0.9), layout="compressed")
    panels = figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0]
    for (label, matrix), panel in zip(matrices.items(), panels, strict=True):
        shares = [[100.0 * n / max(sum(row), 1) for n in row] for row in matrix.tolist()]
        panel.imshow(shares, cmap="Blues", vmin=0.0, vmax=100.0)
        panel.set_title(str(label).replace("_", " "), fontsize=9)
        panel.set_xlabel("taken for", fontsize=8)
        if named:
            panel.set_xticks(range(count), classes, rotation=90, fontsize=7)
        for row, column in itertools.product(range(count if count <= 12 else 0), repeat=2):
            share = shares[row][column]
            if round(share):  # none that would read 0
                ink = "white" if share > 50 else "black"
                panel.text(
                    column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=ink
                )
    panels[0].set_ylabel("true class, % of its images", fontsize=8)
    if named:
        panels[0].set_yticks(range(count), classes, fontsize=7)
    return figure


def class_accuracy(matrices: Mapping[str, Any], classes: Sequence[str]) -> pd.DataFrame:
    """Return the share of each class's images that was recognised: a row a label and class.

    Args:
        matrices: of each label an array (C, C), as :func:`confusion` takes them.
        classes: their names.
    """
    return pd.DataFrame(
        {
            "label": label,
            "class": name,
            "images": int(row.sum()),
            "accuracy": row[number] / row.sum() if row.sum() else None,
        }
        for label, matrix in matrices.items()
        for number, (name, row) in enumerate(zip(classes, matrix, strict=True))
    )
