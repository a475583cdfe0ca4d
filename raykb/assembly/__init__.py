"""From a resolved config to a training, and what each kind of training reads."""

from raykb.assembly.anytime import Budget, anytime_network, game
from raykb.assembly.as_they_are import AsTheyAre, State, read_weights
from raykb.assembly.builder import (
    RECIPE,
    SECTIONS,
    Data,
    by_recipe,
    compared,
    network_of,
    objective_of,
    rehearse,
    rehearse_all,
    rehearse_phases,
    training,
)
from raykb.assembly.pairs import Captions, Pairs, pair_data
from raykb.assembly.pipelined import Pipelined
from raykb.assembly.predictions import Predictions, predicted, prediction_key, unfit
from raykb.assembly.recognition import Recognition, recognition_data
from raykb.assembly.segmentation import (
    Folds,
    Patches,
    PreparedTask,
    Tasks,
    check_packages,
    opened,
    planned,
    prepared,
    segmentation_data,
    stand_in,
)
from raykb.assembly.segmenters import CELLS, NETWORKS, PLANNED, methods_named
from raykb.assembly.self_supervised import (
    Asked,
    SelfSupervised,
    check_offers,
    self_supervised_data,
    tasks_of,
    untrained,
)
from raykb.assembly.semi_supervised import SemiSupervised, semi_supervised_data
from raykb.assembly.supervised import Supervised, classifier_data
from raykb.segmentation.settings import PlanSettings

__all__ = [
    "CELLS",
    "NETWORKS",
    "PLANNED",
    "RECIPE",
    "SECTIONS",
    "AsTheyAre",
    "Asked",
    "Budget",
    "Captions",
    "Data",
    "Folds",
    "Pairs",
    "Patches",
    "Pipelined",
    "PlanSettings",
    "Predictions",
    "PreparedTask",
    "Recognition",
    "SelfSupervised",
    "SemiSupervised",
    "State",
    "Supervised",
    "Tasks",
    "anytime_network",
    "by_recipe",
    "check_offers",
    "check_packages",
    "classifier_data",
    "compared",
    "game",
    "methods_named",
    "network_of",
    "objective_of",
    "opened",
    "pair_data",
    "planned",
    "predicted",
    "prediction_key",
    "prepared",
    "read_weights",
    "recognition_data",
    "rehearse",
    "rehearse_all",
    "rehearse_phases",
    "segmentation_data",
    "self_supervised_data",
    "semi_supervised_data",
    "stand_in",
    "tasks_of",
    "training",
    "unfit",
    "untrained",
]
