"""Tables and pictures of results; pandas and matplotlib, and of raykb the metrics alone.

Figures are made without pyplot, so they need no display and leave no state behind.
"""

from raykb.report.anytime import learning_curves
from raykb.report.attention import attention
from raykb.report.cells import cells
from raykb.report.choices import chosen, errors_by_corruption
from raykb.report.comparison import ComparisonTable
from raykb.report.figures import png
from raykb.report.pairs import aligned, retrieved
from raykb.report.probes import neighbours, probe_curves
from raykb.report.pseudo_labels import told_of
from raykb.report.scenes import scenes
from raykb.report.search import search_files
from raykb.report.searches import searches
from raykb.report.segmentation import Scored, TaskTable, slices
from raykb.report.stages import reached, stages
from raykb.report.standings import Standings
from raykb.report.timeline import timeline
from raykb.report.told import Told

__all__ = [
    "ComparisonTable",
    "Scored",
    "Standings",
    "TaskTable",
    "Told",
    "aligned",
    "attention",
    "cells",
    "chosen",
    "errors_by_corruption",
    "learning_curves",
    "neighbours",
    "png",
    "probe_curves",
    "reached",
    "retrieved",
    "scenes",
    "search_files",
    "searches",
    "slices",
    "stages",
    "timeline",
    "told_of",
]
