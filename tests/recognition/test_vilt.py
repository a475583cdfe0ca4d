import math

import pytest
import torch

from raykb.engine.objective import Learner, Task, learning_step
from raykb.engine.seeding import generator
from raykb.models.vilt import ViLT
from raykb.parts.backbone import freeze_classifier
from raykb.recognition.batch import PairBatch
from raykb.recognition.vilt import (
    ViLTObjective,
    alignment_loss,
    hidden_loss,
    seen_places,
    true_pairs,
)

COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
VOCABULARY = 64


def learner(**settings):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch": 8, "width": 32, "depth": 2, "heads": 4}
    network = ViLT(4, 3, vocabulary=VOCABULARY, text_length=5, **sizes)
    freeze_classifier(network)
    return Learner(network, ViLTObjective(Task(network, 300), **settings))


def shapes(step, size=16, *, told=True):
    """Return squares of a colour at the left or right, and what they are called."""
    numbers = generator(0, step)
    colour, place, other, wrong = torch.randint(4, (4, size), generator=numbers)
    place, called = place % 2, colour if told else other
    images, false = drawn(colour, place), drawn((called + 1 + wrong % 3) % 4, place)
    tokens = torch.stack([torch.full((size,), 2), 10 + called, torch.full((size,), 3)], 1)
    words = torch.tensor([-1, 0, -1]).expand(size, -1)
    masked, hidden = tokens.clone(), torch.full_like(tokens, -100)
    masked[:, 1], hidden[:, 1] = 4, tokens[:, 1]
    lots = torch.rand(size, generator=numbers)
    sizes = torch.full((size, 2), 16)
    patches = torch.rand(size, 2, 4, generator=numbers)
    return PairBatch(images, false, tokens, words, masked, hidden, lots, sizes, sizes, patches)


def drawn(colour, place):
    images = torch.zeros(len(colour), 3, 16, 16)
    squares = COLOURS[colour][:, :, None, None].expand(-1, -1, 8, 8)
    for row, (left, square) in enumerate(zip(place.tolist(), squares, strict=True)):
        images[row, :, 4:12, 8 * left : 8 * left + 8] = square
    return images


@pytest.mark.parametrize("size", range(1, 10))
def test_half_of_the_pairs_are_true_rounded_down(size):
    true = true_pairs(torch.rand(size, generator=generator(size)))
    assert true.sum() == size // 2


def test_hidden_tokens_alone_count():
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 1] = 50.0
    assert hidden_loss(logits, torch.tensor([[1, -100, -100]])).item() == pytest.approx(0)
    assert hidden_loss(logits, torch.tensor([[-100, 2, -100]])).item() == pytest.approx(math.log(5))
    assert hidden_loss(logits, torch.full((1, 3), -100)).item() == 0


def test_alignment_draws_true_pairs_together_and_false_ones_apart():
    distances = torch.tensor([0.2, 0.6, 0.5, 0.9])
    found = alignment_loss(distances, torch.tensor([1, 0, 1, 0]))
    assert found.item() == pytest.approx((0.2 + 0.5 - 0.6 - 0.9) / 4)


def test_losses_start_where_chance_has_them():
    terms = learner()(shapes(0), 0)
    assert terms["loss_words"].item() == pytest.approx(math.log(VOCABULARY), rel=0.1)
    assert terms["loss_matching"].item() == pytest.approx(math.log(2), rel=0.5)
    parts = terms["loss_words"] + terms["loss_matching"] + terms["loss_alignment"]
    assert terms["loss"].item() == pytest.approx(parts.item(), rel=1e-6)


def test_the_loss_of_matching_sees_the_false_image_of_false_pairs_alone():
    whole, batch = learner(), shapes(0)
    false = true_pairs(batch.lots) == 0
    other = batch.false_images.clone()
    other[~false] = 5.0
    same = whole(batch._replace(false_images=other), 0)["loss_matching"]
    assert same == whole(batch, 0)["loss_matching"]
    other[false] = 5.0
    assert whole(batch._replace(false_images=other), 0)["loss_matching"] != same


def test_at_most_so_many_patches_are_seen_and_padding_only_where_there_is_nothing_else():
    lots = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.4, 0.6]])
    present = torch.tensor([[True, True, True, True], [False, True, False, False]])
    assert seen_places(lots, present, 2).tolist() == [[1, 3], [1, 0]]
    assert seen_places(lots, present, 4) is None
    assert seen_places(lots, present, None) is None


def test_a_pass_sees_the_patches_that_its_lots_say_and_no_others():
    whole, batch = learner(most_patches=2), shapes(0)
    blank = batch.images.clone()
    hidden = batch.patch_lots[:, 0].argsort(1)[:, 2:]
    for row, places in enumerate(hidden.tolist()):
        for place in places:
            top, left = 8 * (place // 2), 8 * (place % 2)
            blank[row, :, top : top + 8, left : left + 8] = 9.0
    terms = [whole(each, 0) for each in (batch, batch._replace(images=blank))]
    assert terms[0]["loss_words"] == terms[1]["loss_words"]
    assert terms[0]["loss_matching"] != terms[1]["loss_matching"]  # has lots of its own


@pytest.mark.parametrize(("told", "low", "high"), [(True, 0.9, 1.0), (False, 0.35, 0.65)])
def test_pairs_are_told_where_texts_are_true_and_not_where_they_say_nothing(told, low, high):
    whole = learner()
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], 1e-3)
    step, right = learning_step(whole), []
    for number in range(300):
        batch = shapes(number, told=told)
        if not told:  # a false image is as likely to be what the text says as the true one
            batch = batch._replace(false_images=batch.images.roll(1, 0))
        right.append(step(batch, number)["pairs_right"].item())
        optimizer.step()
        optimizer.zero_grad()
    found = sum(right[-50:]) / 50
    assert low < found <= high
