"""Self-supervised learning: a method's formula in the file of its name.

``METHODS`` has one row for each; :func:`raykb.assembly.training` trains by any of them.
"""

from raykb.engine.objective import Objective
from raykb.selfsup.byol import BYOL
from raykb.selfsup.simclr import SimCLR

METHODS: dict[str, type[Objective]] = {
    "byol": BYOL,
    "simclr": SimCLR,
}
