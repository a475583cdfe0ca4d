import numpy as np
import pytest
import torch

from raykb.data.image_views import ClassifierView
from raykb.data.images import ImageSet
from raykb.data.pairs import PairSet
from raykb.data.views import CropFlipView
from raykb.evaluate.pair_retrieval import PairRetrieval, recalls
from raykb.evaluate.pair_scores import cosine_scores, matching_scores
from raykb.evaluate.prompts import Prompted
from raykb.models.vilt import ViLT

CPU = torch.device("cpu")
VIEW = ClassifierView(CropFlipView(mean=[0.0], std=[1.0]))


def pairs(count=6):
    """Return images whose brightness is their text's second token; two share a text."""
    kinds = np.maximum(np.arange(count) - 1, 0)
    images = (kinds[:, None, None, None] * np.ones((1, 1, 8, 8))).astype(np.uint8)
    found = ImageSet(images, kinds, np.arange(count), tuple("abcde"))
    tokens = np.stack([np.full(count, 2), 5 + kinds, np.full(count, 3)], 1)
    return PairSet(found, tuple("aabcde"), tokens, np.zeros_like(tokens))


def near(network, images, sizes, tokens):
    shown = (images[:, 0, 0, 0] * 255).round()
    return -(tokens[:, 1, None] - 5 - shown[None]).abs()


def far(network, images, sizes, tokens):
    return -near(network, images, sizes, tokens)


def test_recall_is_whether_one_that_belongs_is_among_the_first():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    belongs = torch.tensor([[True, False, False], [False, False, True]])
    found = recalls(scores, belongs, "text")
    assert found == {"text_recall_1": 0.5, "text_recall_5": 1.0, "text_recall_10": 1.0}


def test_each_finds_its_own_both_ways_and_an_image_of_a_text_is_enough():
    found = PairRetrieval(pairs(), VIEW, near)(torch.nn.Identity(), CPU)
    assert set(found.figures.values()) == {1.0}
    assert found.details["nearest"][-1][0] == found.details["queries"][-1]


def test_details_say_what_texts_and_images_find_by_rows_that_have_it():
    details = PairRetrieval(pairs(), VIEW, near)(torch.nn.Identity(), CPU).details
    columns = (details[key] for key in ("queries", "nearest", "texts"))
    for query, images, texts in zip(*columns, strict=True):
        assert max(query - 1, 0) == max(images[0] - 1, 0)  # rows 0 and 1 have one text
        assert max(query - 1, 0) == max(texts[0] - 1, 0)
        assert len(set(texts)) == 3


def test_who_has_it_the_wrong_way_round_finds_nothing_first():
    figures = PairRetrieval(pairs(), VIEW, far)(torch.nn.Identity(), CPU).figures
    assert figures["image_recall_1"] == figures["text_recall_1"] == 0


def test_an_image_is_of_the_class_whose_prompt_fits_best():
    prompts = torch.tensor([[2, 5 + kind, 3] for kind in range(5)])
    for scores, share in ((near, 1.0), (far, 0.0)):
        found = Prompted(pairs(), VIEW, prompts, scores)(torch.nn.Identity(), CPU)
        assert found.figures["top1"] == share


@pytest.mark.parametrize("scores", [matching_scores, cosine_scores])
def test_a_score_is_that_of_the_pair_alone_whatever_stands_beside(scores):
    torch.manual_seed(0)
    network = ViLT(
        2, 1, vocabulary=12, text_length=3, image_size=8, patch=4, width=8, depth=1, heads=2
    ).eval()
    images = torch.randn(5, 1, 8, 8)
    tokens = torch.tensor([[2, 5, 3], [2, 7, 3]])
    sizes = torch.tensor([[8, 8], [4, 8], [8, 8], [8, 4], [8, 8]])
    whole = scores(network, images, sizes, tokens)
    assert whole.shape == (2, 5)
    alone = scores(network, images[3:4, :, :, :4], sizes[3:4], tokens[1:])  # without padding
    assert torch.allclose(alone, whole[1:, 3:4], atol=1e-6)


def test_the_score_of_a_pair_is_the_log_odds_of_belonging():
    network = ViLT(
        2, 1, vocabulary=12, text_length=3, image_size=8, patch=4, width=8, depth=1, heads=2
    ).eval()
    images, tokens = torch.randn(1, 1, 8, 8), torch.tensor([[2, 5, 3]])
    share = network.matching(network.joint(images, tokens).pooled).softmax(1)[0, 1]
    found = matching_scores(network, images, torch.tensor([[8, 8]]), tokens).sigmoid().item()
    assert found == pytest.approx(share.item())
