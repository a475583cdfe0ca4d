import numpy as np
import pytest

from raykb.evaluate.ingestion import GameData, Part, ingestion
from raykb.metrics.anytime import log_time

LABELS = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
DATA = GameData(*(Part(np.zeros((4, 1, 3, 5, 6), np.uint8), LABELS) for _ in range(2)))


class HeldClock:
    """Time goes on only when somebody says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Kit:
    """A model as the challenge's starting kit has it: it iterates, and knows nothing of raykb."""

    def __init__(self, metadata, clock, scores, seconds=10.0):
        assert metadata.get_output_size() == 2
        assert (metadata.get_matrix_size(0), metadata.get_num_channels(0)) == ((5, 6), 3)
        self.done_training, self.clock, self.seconds = False, clock, seconds
        self.scores, self.left, self.seen = list(scores), [], []

    def train(self, dataset, remaining_time_budget=None):
        self.left.append(remaining_time_budget)
        self.shapes = [(example.shape, labels.shape) for example, labels in dataset]
        self.clock.now += self.seconds

    def test(self, dataset, remaining_time_budget=None):
        self.seen += [labels.sum() for _, labels in dataset]
        share = self.scores.pop(0)
        self.done_training = not self.scores
        return 0.5 + (LABELS - 0.5) * share


def played(scores, budget_s=1200.0, **settings):
    clock = HeldClock()
    model = Kit(DATA.metadata, clock, scores, **settings)
    return model, ingestion(model, DATA, budget_s, clock=clock)


def test_a_model_of_the_starting_kit_plays_until_it_is_done():
    model, game = played([0.0, 1.0])
    assert [line.seconds for line in game.ledger] == [10, 20]
    assert [line.nauc for line in game.ledger] == [0, 1]
    assert game.alc == pytest.approx(1 - log_time(20, 1200))
    assert model.left == [1200, 1190]
    assert model.shapes == [((1, 5, 6, 3), (2,))] * 4


def test_the_labels_of_the_test_part_are_hidden():
    model, _ = played([1.0, 1.0])
    assert not any(model.seen)


def test_a_prediction_after_the_budget_counts_nothing_and_ends_the_game():
    _, game = played([1.0] * 5, budget_s=15.0)
    assert (len(game.ledger), game.late) == (1, 1)
    assert game.alc == pytest.approx(1 - log_time(10, 15))


def test_the_area_so_far_is_that_of_the_game_if_nothing_came_after():
    _, game = played([1.0, -1.0, 1.0])
    assert game.ledger[0].alc == pytest.approx(1 - log_time(10, 1200))
    assert game.ledger[1].alc < game.ledger[0].alc < 1


def test_predictions_of_another_shape_or_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match=r"each in \[0, 1\]"):
        played([2.0])
