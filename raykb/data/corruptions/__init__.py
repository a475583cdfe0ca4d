"""Corruptions of images, to measure how robust a classifier is: ImageNet-C's fifteen and four more.

``corrupting.py`` has the door and what departs from the source, ``table.py`` all constants;
``noise.py``, ``blur.py``, ``weather.py``, ``digital.py`` and ``spatter.py`` the formulas.
"""

from raykb.data.corruptions.corrupting import CONSTANTS, corrupted
from raykb.data.corruptions.table import CORRUPTIONS, EXTRA, SEVERITIES, Corruption

__all__ = ["CONSTANTS", "CORRUPTIONS", "EXTRA", "SEVERITIES", "Corruption", "corrupted"]
