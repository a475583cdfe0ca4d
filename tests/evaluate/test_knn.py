import math

import pytest
import torch
from judged import judged

from raykb.evaluate.backbone import Features
from raykb.evaluate.knn import KNN


def features(count, classes, seed):
    numbers = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, generator=numbers)
    return Features(rows, torch.randint(classes, (count,), generator=numbers))


def naive(train, test, k, temperature):
    """The formula, an image at a time."""
    hits = 0
    for row, label in zip(test.rows, test.labels.tolist(), strict=True):
        cosines = [((row @ key) / (row.norm() * key.norm())).item() for key in train.rows]
        best = sorted(range(len(cosines)), key=lambda j: -cosines[j])[:k]
        scores = dict.fromkeys(range(10), 0.0)
        for j in best:
            scores[int(train.labels[j])] += math.exp(cosines[j] / temperature)
        hits += max(scores, key=scores.get) == label
    return hits / len(test.rows)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_it_is_the_vote_of_the_nearest_an_image_at_a_time(k, temperature):
    train, test = features(50, 3, 0), features(40, 3, 1)
    found = KNN(neighbours=k, temperature=temperature)(judged(train, test))
    assert found.figures["top1"] == pytest.approx(naive(train, test, k, temperature))


@pytest.mark.parametrize(("temperature", "winner"), [(1.0, 1), (0.1, 0)])
def test_golden_numbers(temperature, winner):
    cosines, labels = torch.tensor([[0.9, 0.5, 0.4, 0.1]]), torch.tensor([0, 1, 1, 0])
    scores = KNN(neighbours=3, temperature=temperature).scores(cosines, labels)
    first, second, third = (math.exp(cosine / temperature) for cosine in (0.9, 0.5, 0.4))
    wanted = [first, second + third]
    torch.testing.assert_close(scores[0] / scores[0, 0], torch.tensor(wanted) / wanted[0])
    assert scores.argmax() == winner


def test_fewer_training_images_than_neighbours_all_vote():
    train = Features(torch.eye(3), torch.tensor([2, 2, 0]))
    test = Features(torch.tensor([[1.0, 0.0, 0.9]]), torch.tensor([2]))
    assert KNN(neighbours=20, temperature=1.0)(judged(train, test)).figures == {"top1": 1.0}


def test_details_name_the_nearest_training_images_of_some_test_images():
    train, test = features(30, 3, 0), features(20, 3, 1)
    details = KNN()(judged(train, test)).details
    assert details["queries"][0] == 0
    assert details["queries"][-1] == 19
    for query, nearest in zip(details["queries"], details["nearest"], strict=True):
        cosines = torch.cosine_similarity(train.rows, test.rows[query], dim=1)
        assert nearest == cosines.argsort(descending=True)[:5].tolist()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="neighbours: 0, must be at least 1; temperature: 0, must"):
        KNN(neighbours=0, temperature=0)
