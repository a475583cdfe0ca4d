"""Semi-supervised learning: a method's formula in the file of its name.

``METHODS`` has one row for each; :func:`raykb.assembly.training` trains by any of them.
"""

from raykb.engine.objective import Objective
from raykb.semi.contrastive_regularization import ContrastiveRegularization
from raykb.semi.fixmatch import FixMatch
from raykb.semi.flexmatch import FlexMatch
from raykb.semi.freematch import FreeMatch
from raykb.semi.pseudo_label import PseudoLabel
from raykb.semi.softmatch import SoftMatch
from raykb.semi.supervised import Supervised
from raykb.semi.uda import UDA

METHODS: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "uda": UDA,
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "contrastive_regularization": ContrastiveRegularization,
}
