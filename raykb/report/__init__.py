"""Tables and pictures of results; pandas and matplotlib, and of raykb the metrics alone.

Figures are made without pyplot, so they need no display and leave no state behind.
"""

from raykb.report.comparison import ComparisonTable
from raykb.report.figures import png
from raykb.report.images import image_columns
from raykb.report.pseudo_labels import Told, told_of
from raykb.report.search import operation_use, search_history
from raykb.report.tables import markdown
from raykb.report.timeline import timeline

__all__ = [
    "ComparisonTable",
    "Told",
    "image_columns",
    "markdown",
    "operation_use",
    "png",
    "search_history",
    "timeline",
    "told_of",
]
