"""Recognition: classifiers, and how their images are mixed; a method in the file of its name.

``METHODS`` has what a network is trained by, ``MIXINGS`` what becomes of its batches before; any of
the one goes with any of the other (:mod:`raykb.recognition.mixed_feed`). ``PAIR_METHODS`` has what
a network is trained by that sees images and texts.
"""

from collections.abc import Callable

from raykb.engine.objective import Objective
from raykb.recognition.cross_entropy import SoftCrossEntropy
from raykb.recognition.cutmix import CutMix
from raykb.recognition.cutout import Cutout
from raykb.recognition.mixture import Mixing, Unmixed
from raykb.recognition.mixup import MixUp
from raykb.recognition.saol import SAOL
from raykb.recognition.two_towers import TwoTowers
from raykb.recognition.vilt import ViLTObjective

METHODS: dict[str, type[Objective]] = {"cross_entropy": SoftCrossEntropy, "saol": SAOL}

PAIR_METHODS: dict[str, type[ViLTObjective] | type[TwoTowers]] = {
    "vilt": ViLTObjective,
    "two_towers": TwoTowers,
}

MIXINGS: dict[str, Callable[..., Mixing]] = {
    "none": Unmixed,
    "cutout": Cutout,
    "mixup": MixUp,
    "cutmix": CutMix,
}
