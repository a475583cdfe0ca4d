from dataclasses import replace

import numpy as np
import pytest
import torch

from raykb.data.images import ImageSet
from raykb.data.pair_views import PairView, hidden_words
from raykb.data.pairs import PairSet
from raykb.data.views import CropFlipView
from raykb.engine.seeding import generator

TOKENS = torch.tensor([[2, 10, 11, 12, 13, 14, 3, 0]])
WORDS = torch.tensor([[-1, 0, 0, 1, 2, 3, -1, -1]])


def draws(rows, seed=0):
    return torch.rand(rows, 3, 8, generator=generator(seed), dtype=torch.float64)


def hidden(rows, share=0.15, seed=0):
    whole = TOKENS.expand(rows, -1), WORDS.expand(rows, -1)
    return hidden_words(*whole, draws(rows, seed), share, 4, (5, 60))


def pairs(count=6):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 4), np.uint8)
    numbers = np.arange(count)
    found = ImageSet(images, numbers % 2, numbers + 100, ("a", "b"))
    tokens, words = (np.repeat(of.numpy(), count, 0) for of in (TOKENS, WORDS))
    return PairSet(found, tuple("abcdef"), tokens, words)


def view(examples):
    form = CropFlipView(mean=[0.5], std=[0.5], padding=1, flip=False)
    return PairView(form, examples, 4, (5, 60))


def viewed(ids, seed=0, epoch=0):
    examples = pairs()
    rows = np.flatnonzero(np.isin(examples.ids, ids))
    arrays = {name: torch.from_numpy(array) for name, array in examples.read(rows).arrays.items()}
    return view(examples).train(arrays, examples.ids[rows], seed, epoch)


def test_words_are_hidden_whole_and_nothing_else_is():
    _, targets = hidden(400)
    chosen = targets != -100
    assert torch.equal(chosen[:, 1], chosen[:, 2])  # of one word
    assert not chosen[:, [0, 6, 7]].any()
    assert torch.equal(targets[chosen], TOKENS.expand(400, -1)[chosen])


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (0.15, 1), (0.5, 2), (0.75, 3), (0.99, 4)])
def test_a_share_of_the_words_is_hidden_and_at_least_one(share, count):
    _, targets = hidden(50, share)
    assert ((targets != -100)[:, [1, 3, 4, 5]].sum(1) == count).all()


def test_every_word_is_hidden_as_often_and_tokens_become_what_bert_makes_of_them():
    masked, targets = hidden(8000)
    chosen = targets != -100
    assert torch.allclose(
        chosen[:, [1, 3, 4, 5]].float().mean(0), torch.full((4,), 0.25), atol=0.03
    )
    became, was = masked[chosen], targets[chosen]
    assert (became == 4).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (became == was).float().mean().item() == pytest.approx(0.1 + 0.1 / 55, abs=0.02)
    assert became[became != 4].min() >= 5
    assert torch.equal(masked[~chosen], TOKENS.expand(8000, -1)[~chosen])


def test_a_text_without_words_has_nothing_hidden():
    tokens, words = torch.tensor([[2, 3, 0, 0, 0, 0, 0, 0]]), torch.full((1, 8), -1)
    masked, targets = hidden_words(tokens, words, draws(1), 0.5, 4, (5, 60))
    assert torch.equal(masked, tokens)
    assert (targets == -100).all()


def test_what_becomes_of_a_pair_depends_on_seed_epoch_and_id_alone():
    whole, part = viewed(np.arange(100, 106)), viewed(np.array([102, 105]))
    for name, field in part.items():
        assert torch.equal(field, whole[name][[2, 5]]), name
    for other in (viewed(np.arange(100, 106), seed=1), viewed(np.arange(100, 106), epoch=1)):
        assert not torch.equal(other["lots"], whole["lots"])
        assert not torch.equal(other["masked"], whole["masked"])


def test_images_of_several_shapes_come_with_their_sizes_and_draws_of_their_patches():
    sizes = np.array([[4, 2 + 2 * (n % 2)] for n in range(6)])
    examples, rows = replace(pairs(), sizes=sizes), np.arange(6)
    arrays = {name: torch.from_numpy(array) for name, array in examples.read(rows).arrays.items()}
    seen = replace(view(examples), patches=9).train(arrays, examples.ids, 0, 0)
    assert seen["sizes"].tolist() == sizes.tolist()
    which = ((seen["false_images"][:, 0, 1, 1] + 1) / 2 * 255).round().long()
    assert seen["false_sizes"].tolist() == sizes[which].tolist()
    assert seen["patch_lots"].shape == (6, 2, 9)
    assert len(seen["patch_lots"].unique()) == 6 * 2 * 9
    assert examples.subset(np.array([3])).sizes.tolist() == [[4, 4]]
    assert pairs().read(rows).arrays["sizes"].tolist() == [[4, 4]] * 6


def test_false_images_are_drawn_of_all_and_may_be_the_true_one():
    seen = torch.cat([viewed(np.arange(100, 106), epoch=e)["false_images"] for e in range(80)])
    which = ((seen[:, 0, 1, 1] + 1) / 2 * 255).round().long().bincount(minlength=6)
    assert (which > 40).all()  # of 480, 80 are expected of each
