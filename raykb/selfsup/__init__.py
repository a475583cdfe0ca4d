"""Self-supervised learning: a method's formula in the file of its name.

``METHODS`` has one row for each; :func:`raykb.assembly.training` trains by any of them.
"""

from raykb.engine.objective import Objective
from raykb.selfsup.gmml import GMML
from raykb.selfsup.mae import MAE
from raykb.selfsup.scrl import SCRL
from raykb.selfsup.simmim import SimMIM

METHODS: dict[str, type[Objective]] = {
    "mae": MAE,
    "simmim": SimMIM,
    "gmml": GMML,
    "scrl": SCRL,
}
