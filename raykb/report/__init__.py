"""Tables and pictures of results; pandas and matplotlib, and of raykb the metrics alone.

Figures are made without pyplot, so they need no display and leave no state behind.
"""
