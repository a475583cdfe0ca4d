"""Self-supervised learning: a method's formula in the file of its name.

``METHODS`` has one row for each, and one for learning with labels, which they are held against;
:func:`raykb.assembly.training` trains by any of them.
"""

from raykb.engine.objective import Objective
from raykb.selfsup.barlow_twins import BarlowTwins
from raykb.selfsup.byol import BYOL
from raykb.selfsup.dcl import DCL
from raykb.selfsup.dino import DINO
from raykb.selfsup.gmml import GMML
from raykb.selfsup.jigsaw import Jigsaw
from raykb.selfsup.mae import MAE
from raykb.selfsup.moco import MoCo
from raykb.selfsup.nnclr import NNCLR
from raykb.selfsup.rotation import Rotation
from raykb.selfsup.scrl import SCRL
from raykb.selfsup.simclr import SimCLR
from raykb.selfsup.simmim import SimMIM
from raykb.selfsup.simsiam import SimSiam
from raykb.selfsup.supervised import Supervised
from raykb.selfsup.swav import SwAV
from raykb.selfsup.tico import TiCo
from raykb.selfsup.vicreg import VICReg

METHODS: dict[str, type[Objective]] = {
    "simclr": SimCLR,
    "dcl": DCL,
    "moco": MoCo,
    "nnclr": NNCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "dino": DINO,
    "tico": TiCo,
    "scrl": SCRL,
    "mae": MAE,
    "simmim": SimMIM,
    "gmml": GMML,
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "supervised": Supervised,
}
