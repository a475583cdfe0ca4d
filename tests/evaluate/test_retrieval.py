import pytest
import torch
from judged import judged

from raykb.evaluate.backbone import Features
from raykb.evaluate.retrieval import Retrieval, ranked, scores


def features(count, classes, seed, width=4):
    numbers = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=numbers)
    return Features(rows, torch.randint(classes, (count,), generator=numbers))


def asked(test):
    return Retrieval()(judged(test, test)).figures


def naive(test):
    """The formulas, a query and a rank at a time."""
    precisions, first, among_five = [], [], []
    for q, (row, label) in enumerate(zip(test.rows, test.labels.tolist(), strict=True)):
        others = [j for j in range(len(test.rows)) if j != q]
        cosine = {j: torch.cosine_similarity(row, test.rows[j], dim=0).item() for j in others}
        order = sorted(others, key=lambda j: -cosine[j])
        hits, total = 0, 0.0
        for rank, j in enumerate(order, 1):
            if test.labels[j] == label:
                hits += 1
                total += hits / rank
        if hits:
            precisions.append(total / hits)
            first.append(test.labels[order[0]] == label)
            among_five.append(any(test.labels[j] == label for j in order[:5]))
    count = len(precisions)
    return {
        "map": sum(precisions) / count,
        "recall_1": int(sum(first)) / count,
        "recall_5": sum(among_five) / count,
    }


@pytest.mark.parametrize(("count", "classes"), [(40, 3), (30, 12), (4, 2)])
def test_it_is_what_the_formulas_say_a_query_at_a_time(count, classes):
    test = features(count, classes, seed=count)
    assert asked(test) == pytest.approx(naive(test))


@pytest.mark.parametrize("pairs", [1, 40, 130, 10**6])
def test_blocks_of_any_size_rank_alike(pairs):
    test = features(40, 3, 0)
    whole, blocks = torch.cat([*ranked(test)]), [*ranked(test, pairs=pairs)]
    assert max(map(len, blocks)) == min(max(1, pairs // 40), 40)
    assert torch.equal(torch.cat(blocks), whole)
    assert whole.shape == (40, 39)


def test_golden_numbers():
    relevant = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    wanted = [[5 / 6, 1, 1], [1 / 4, 0, 1]]
    torch.testing.assert_close(scores(relevant), torch.tensor(wanted).double())


def test_classes_apart_are_found_whole_whatever_the_length_of_features():
    directions = torch.eye(3).repeat(4, 1) + 0.01 * features(12, 3, 0, width=3).rows
    lengths = torch.linspace(0.1, 50.0, 12)[:, None]
    figures = asked(Features(directions * lengths, torch.arange(12) % 3))
    assert figures == {"map": 1.0, "recall_1": 1.0, "recall_5": 1.0}


def test_an_image_alone_in_its_class_asks_nothing_but_may_stand_in_the_way():
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]])
    figures = asked(Features(rows, torch.tensor([0, 1, 0])))
    assert figures == {"map": 0.5, "recall_1": 0.0, "recall_5": 1.0}


def test_features_that_know_nothing_are_worth_what_chance_is():
    figures = asked(features(600, 3, 0))
    assert figures["map"] == pytest.approx(1 / 3, abs=0.02)
    assert figures["recall_1"] == pytest.approx(1 / 3, abs=3 * (2 / 9 / 600) ** 0.5)


def test_test_images_all_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="none of 3 test images has another one of its class"):
        asked(Features(torch.eye(3), torch.arange(3)))
