"""Search for architectures: cells whose operations are learned as the weights are (SCNAS)."""

from raykb.nas.derive import derive
from raykb.nas.genotype import Genotype, SearchSpace, random_genotype
from raykb.nas.samplers import SAMPLERS
from raykb.nas.scnas import GOLDEN, network
from raykb.nas.search import search_training
from raykb.nas.supernet import Architecture, ChosenNetwork

__all__ = [
    "GOLDEN",
    "SAMPLERS",
    "Architecture",
    "ChosenNetwork",
    "Genotype",
    "SearchSpace",
    "derive",
    "network",
    "random_genotype",
    "search_training",
]
