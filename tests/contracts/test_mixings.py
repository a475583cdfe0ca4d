"""The contract of a mixing, held by every row of MIXINGS, alone and before every objective.

A new row needs nothing here; what one does to images is in the test of its own.
"""

import pickle

import pytest
import torch
from fake_cuda import CUDA, fake_cuda

from raykb.engine.assemble import filled
from raykb.engine.loop import Worker
from raykb.engine.objective import Learner, Task
from raykb.engine.seeding import generator
from raykb.models import MODELS
from raykb.recognition import METHODS, MIXINGS
from raykb.recognition.mixed_feed import MixedFeed

CLASSES, COUNT = 4, 6
OWN = [(name, per_sample) for name in MIXINGS if name != "none" for per_sample in (False, True)]
CASES = {"none": MIXINGS["none"]()} | {
    f"{name}{', each image' * per_sample}": MIXINGS[name](per_sample=per_sample)
    for name, per_sample in OWN
}


@pytest.fixture(params=CASES)
def mixing(request):
    return CASES[request.param]


def images(count=COUNT, size=(16, 24)):
    return torch.randn(count, 3, *size, generator=generator(1))


LABELS = torch.arange(COUNT) % CLASSES


class Steps:
    """A feed of steps whose images are functions of the step."""

    def __init__(self):
        self.closed = 0

    def batches(self, start, worker, stop=None):
        for step in range(start, stop):
            yield {"images": images() + step, "labels": LABELS, "ids": torch.arange(COUNT)}

    def figures(self):
        return {"stream/rows_per_s": 7.0}

    def close(self):
        self.closed += 1


def steps(mixing, start=0, stop=6, *, seed=5, worker=None):
    return list(MixedFeed(Steps(), mixing, CLASSES, seed).batches(start, worker or Worker(), stop))


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# Mixtures


@pytest.mark.parametrize("count", [1, COUNT])
def test_targets_are_shares_that_sum_to_1_and_say_whose_the_image_is(mixing, count):
    batch, labels = images(count), LABELS[:count]
    for seed in range(8):
        drawn = mixing.draw(batch, generator(seed))
        found, targets = drawn.applied(batch, labels), drawn.targets(labels, CLASSES)
        torch.testing.assert_close(targets.sum(1), torch.ones(count))
        own = torch.zeros(count, CLASSES).index_put((torch.arange(count), labels), found.kept)
        place = (torch.arange(count), found.others)
        torch.testing.assert_close(targets, own.index_put(place, 1 - found.kept, accumulate=True))
        assert ((found.kept >= 0) & (found.kept <= 1)).all()


def test_an_image_is_its_own_under_the_mask_and_its_donors_elsewhere(mixing):
    batch = images()
    for seed in range(8):
        drawn = mixing.draw(batch, generator(seed))
        found, share = drawn.blended(batch, drawn.donors(batch)), drawn.masks.float()
        torch.testing.assert_close(found, share * batch + (1 - share) * drawn.donors(batch))
        whole = (drawn.masks == 1).expand_as(batch)
        assert torch.equal(found[whole], batch[whole])


def test_the_generator_alone_decides_and_the_input_stays(mixing):
    batch, before = images(), torch.get_rng_state()
    first, second = (mixing.draw(batch, generator(4)).applied(batch, LABELS) for _ in range(2))
    same(first._asdict(), second._asdict())
    assert torch.equal(batch, images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "per_sample"), OWN)
def test_with_probability_0_a_batch_is_unchanged_bit_for_bit(name, per_sample):
    drawn = MIXINGS[name](probability=0.0, per_sample=per_sample).draw(images(), generator(0))
    found = drawn.applied(images(), LABELS)
    assert torch.equal(found.images, images())
    assert (found.kept == 1).all()


def test_a_float64_batch_is_not_rounded(mixing):
    batch = images().double()
    drawn = mixing.draw(batch, generator(2))
    assert drawn.applied(batch, LABELS).images.dtype == torch.float64
    assert drawn.targets(LABELS, CLASSES).dtype == torch.float64


def test_it_travels_to_workers(mixing):
    there = pickle.loads(pickle.dumps(mixing)).draw(images(), generator(4))
    same(
        there.applied(images(), LABELS)._asdict(),
        mixing.draw(images(), generator(4)).applied(images(), LABELS)._asdict(),
    )


def test_on_a_device_nothing_is_left_on_the_cpu_and_nothing_waits(mixing):
    with fake_cuda() as gpu:
        batch, labels = gpu.moved((images(), LABELS))
        drawn = mixing.draw(batch, generator(0))
        found = (*drawn.applied(batch, labels), drawn.masks, drawn.targets(labels, CLASSES))
        assert {tensor.device for tensor in found} == {CUDA}
        assert gpu.waits == []


# Feeds


def test_a_run_that_goes_on_sees_what_it_would_have_seen(mixing):
    for whole, later in zip(steps(mixing)[4:], steps(mixing, start=4), strict=True):
        same(whole, later)


def test_ranks_draw_the_same(mixing):
    for mine, its in zip(
        *(steps(mixing, worker=Worker(rank, 2)) for rank in range(2)), strict=True
    ):
        assert torch.equal(mine["masks"], its["masks"])
        assert torch.equal(mine["targets"], its["targets"])


@pytest.mark.parametrize(("name", "per_sample"), OWN)
def test_steps_and_seeds_differ(name, per_sample):
    mixing = MIXINGS[name](probability=1.0, per_sample=per_sample)
    masks = [fields["masks"] for seed in (5, 6) for fields in steps(mixing, seed=seed)]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 6


def test_labels_are_there_only_where_they_are_of_the_whole_image(mixing):
    mixes = mixing.draw(images(), generator(0)).order is not None
    for fields in steps(mixing):
        assert ("labels" in fields) != mixes
        assert fields["ids"].tolist() == list(range(COUNT))


def test_the_feed_tells_what_the_other_tells_and_ends_it(mixing):
    feed = MixedFeed(Steps(), mixing, CLASSES, 0)
    assert feed.figures() == {"stream/rows_per_s": 7.0}
    feed.close()
    assert feed.feed.closed == 1


# Objectives


@pytest.mark.parametrize("method", METHODS)
def test_every_objective_learns_from_what_was_mixed(mixing, method):
    network = MODELS["spatially_attentive"](CLASSES, 3, options={"width": 4}, head_width=4)
    learner = Learner(network, METHODS[method](Task(network, 10, CLASSES)))
    terms = learner(filled(learner.objective, steps(mixing, stop=1)[0]), 0)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert sum(each.grad.abs().sum() for each in learner.parameters() if each.grad is not None) > 0
