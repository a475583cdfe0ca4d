"""What a step sees is what it has always been: digests of the batches of whole trainings.

They were computed by the code of commit 4737356, before there were sources. No operation that may
round otherwise on another machine takes part; those have tests of their own.
"""

import pytest
import torch
from shared_images import digest, images, write

from raykb.data.batches import LabelledImages
from raykb.data.feed import InPlace
from raykb.data.image_views import ClassifierView, WeakStrongView, WeakView
from raykb.data.loader import Loader
from raykb.data.order import Endless, Shuffled
from raykb.data.source import Source
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView
from raykb.engine.loop import Worker
from raykb.engine.recipe import Recipe

FORM = CropFlipView(mean=[0.3], std=[0.4], cutout=4)
STEPS = 14
BY = pytest.mark.parametrize("views_by", ["workers", "trainer"])
FILES = "c2d9876a5c601c3d4a0aaac8b8f3e28815fd930b5ae93677319fb574fdbe779f"
UNLABELLED = {  # by shards that are mixed, rank and ranks
    (1, 0, 1): "f879230c4d4109e1",
    (1, 0, 2): "d3ae06ca4688ff85",
    (1, 1, 2): "00a35323aa710245",
    (3, 0, 1): "8c0f773a7fef0c0f",
    (3, 0, 2): "f053d13f1c78f951",
    (3, 1, 2): "fe88ce32fd260037",
}
LABELLED = {(0, 1): "e80d40126f7a0178", (0, 2): "ecb2d2a1bbb12bb7", (1, 2): "f8ad56596637c8e5"}
CLASSIFIER = {  # by whether the last batch is kept, rank and ranks
    (False, 0, 1): "1b86d852d148066d",
    (False, 0, 2): "25fbd5c2b7f61d92",
    (False, 1, 2): "f3a61fdd1935ecf4",
    (True, 0, 1): "2b53d5840d9664d5",
    (True, 0, 2): "c16d2f1171609e3e",
    (True, 1, 2): "e7ea2d996e194008",
}
PIPELINE = {  # by whether the last batch is kept, and share of two
    (False, 0): "4b403e76475e2c52",
    (False, 1): "283693325b07e819",
    (True, 0): "a216fbc596b1079c",
    (True, 1): "0c650dcf9e74653d",
}
TEST = {0: "cd777a75e40f39b3", 1: "1255e08f7f6fbf2f"}


def darker(pixels, ids, epoch):
    """An augmentation: darker images, each by another number."""
    return pixels // 2 + torch.from_numpy(ids % 7 + epoch).to(torch.uint8)[:, None, None, None]


def seen(feed, rank, size, stop=STEPS):
    """Digest all fields of the steps until ``stop``, half of them after a new start."""
    try:
        parts = [(0, stop // 2), (stop // 2, stop)]
        steps = [s for start, end in parts for s in feed.batches(start, Worker(rank, size), end)]
    finally:
        feed.close()
    return digest(array for step in steps for array in step.values())


class Views(WeakStrongView):
    """The views as they are drawn, which no arithmetic of floating-point numbers can change."""

    def finish(self, arrays):
        return arrays


def unlabelled(paths, mix, views_by):
    settings = UnlabelledImages(paths=paths, ratio=4, mix_shards=mix, views_by=views_by)
    examples = settings.examples(7)
    assert examples.digest == FILES
    view = Views(WeakStrong(strong_views=2, operations=0), FORM)
    return settings.source(examples, view, 2, 7)


@BY
def test_unlabelled_images_broken_ones_among_them(tmp_path, views_by):
    paths = write(tmp_path, [20, 3, 17, 10], broken=(5, 30))
    for (mix, *place), expected in UNLABELLED.items():
        assert seen(InPlace(unlabelled(paths, mix, views_by)), *place) == expected
    assert seen(Loader(unlabelled(paths, 3, views_by), workers=1), 1, 2) == UNLABELLED[3, 1, 2]


@BY
def test_labelled_images_of_several_epochs_in_a_step(views_by):
    view = WeakView(WeakStrong(), FORM)
    source = Source(images(), Endless(5, 6, 3), view, 3, views_by)
    assert {place: seen(InPlace(source), *place) for place in LABELLED} == LABELLED


@BY
def test_a_classifiers_images(views_by):
    for (keep, *place), expected in CLASSIFIER.items():
        order = Shuffled(23, 8, 11, keep_last=keep)
        source = Source(images(23), order, ClassifierView(FORM, darker), 11, views_by)
        assert seen(InPlace(source), *place, 3 * order.steps_per_epoch) == expected


def test_a_pipelines_images():
    for (keep, share), expected in PIPELINE.items():
        recipe = Recipe(epochs=3, batch_size=8, keep_last=keep)
        pipeline = LabelledImages(images(23), images(9), FORM, recipe, 11, torch.device("cpu"))
        steps = pipeline.training(1, share, 2)
        assert digest(array for step in steps for array in step) == expected
    for share, expected in TEST.items():
        steps = pipeline.testing(share, 2, batch_size=3)
        assert digest(array for step in steps for array in step) == expected
