"""Segmentation of volumes: networks that a data set's fingerprint plans, and what trains them.

``METHODS`` has one row for each objective; :func:`raykb.segmentation.nnunet.plan` makes plans.
"""

from raykb.engine.objective import Objective
from raykb.segmentation.losses import DiceCrossEntropy

METHODS: dict[str, type[Objective]] = {"dice_cross_entropy": DiceCrossEntropy}
