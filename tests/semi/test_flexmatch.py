import pytest
import torch
from shared_methods import CLASSES, IDS, batch, classifier, method

from raykb.semi.consistency import confidence
from raykb.semi.flexmatch import flexible_thresholds, learning_status


def test_the_golden_thresholds():
    status = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    wanted = [0, 0.135714, 0.316667, 0.57, 0.95]
    assert flexible_thresholds(status, 0.95).tolist() == pytest.approx(wanted, abs=5e-7)


@pytest.mark.parametrize(
    ("selected", "warm_up", "wanted"),
    [
        ([-1, -1, -1, -1], True, [0, 0, 0]),
        ([-1, -1, -1, -1], False, [0, 0, 0]),
        ([0, 0, 1, -1], True, [1, 0.5, 0]),
        ([0, 1, -1, -1, -1, -1], True, [0.25, 0.25, 0]),
        ([0, 0, 1, -1, -1, -1, -1], False, [1, 0.5, 0]),
    ],
)
def test_a_class_is_learned_as_far_as_it_is_selected(selected, warm_up, wanted):
    status = learning_status(torch.tensor(selected), 3, warm_up=warm_up)
    assert status.tolist() == pytest.approx(wanted)


def test_it_is_fixmatch_where_all_classes_are_learned_alike():
    objective, plain = method("flexmatch", threshold=0.4), method("fixmatch", threshold=0.4)
    objective.selected[:6] = torch.arange(6) % CLASSES
    model = classifier()
    flexible, fixed = objective(model, batch(), 0), plain(model, batch(), 0)
    assert 0 < fixed["mask_rate"] < 1
    assert torch.equal(flexible["loss"], fixed["loss"])


def test_what_passes_is_remembered_by_id_and_counts_from_the_next_step_on():
    objective = method("flexmatch", threshold=0.4)
    model, seen = classifier(), batch()
    highest, labels = confidence(model(seen.weak))
    assert 0 < (highest >= 0.4).sum() < len(labels)
    first = objective(model, seen, 0)
    assert first["mask_rate"] == 1  # beta is 0, and with it all thresholds
    remembered = dict(zip(IDS.tolist(), objective.selected.tolist(), strict=True))
    for sample, high, label in zip(seen.ids.tolist(), highest, labels.tolist(), strict=True):
        assert remembered.pop(sample) == (label if high >= 0.4 else -1)
    assert set(remembered.values()) == {-1}
    second = objective(model, seen, 1)
    assert second["threshold"] > first["threshold"] == 0
    slow = method("flexmatch", threshold=0.4, warm_up=False)
    slow(model, seen, 0)
    assert slow(model, seen, 1)["threshold"] >= second["threshold"]


def test_an_image_that_a_batch_has_twice_is_learned_if_one_of_its_views_is():
    objective, seen = method("flexmatch", threshold=0.4), batch()
    highest, _ = confidence(classifier()(seen.weak))
    sure, unsure = highest.argmax(), highest.argmin()
    assert highest[unsure] < 0.4 <= highest[sure]
    for order in ([sure, unsure], [unsure, sure]):
        objective.selected.fill_(-1)
        part = [rows[torch.stack(order)] for rows in (seen.weak, seen.strong)]
        twice = seen._replace(weak=part[0], strong=part[1], ids=IDS[[3, 3]])
        objective(classifier(), twice, 0)
        assert objective.selected[3] >= 0
        assert (objective.selected >= 0).sum() == 1
