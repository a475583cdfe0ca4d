"""Views of images as fields of a batch: drawn under their names, with axes of their own."""

import numpy as np
import pytest
import torch
from shared_images import images, picture, write

from raykb.data.feed import InPlace
from raykb.data.image_views import ClassifierView, WeakStrongView, WeakView
from raykb.data.order import Endless, Shuffled
from raykb.data.source import Source
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView
from raykb.engine.loop import Worker
from raykb.engine.seeding import keyed_uniform, stream_seed

FORM = CropFlipView(mean=[0.3], std=[0.4])


def darker(pixels, ids, epoch):
    """Return darker images, each by another number."""
    return pixels // 2 + torch.from_numpy(ids % 7 + epoch).to(torch.uint8)[:, None, None, None]


def arrays(given):
    found = given.read(np.arange(len(given)))
    return {name: torch.from_numpy(array) for name, array in found.arrays.items()}, found.ids


def test_a_classifier_sees_augmented_images_and_then_its_view():
    given, ids = arrays(images(9))
    view = ClassifierView(FORM, darker)
    fields = view.finish(view.train(given, ids, 3, 2))
    uniforms = keyed_uniform(stream_seed(3, "view", 2), ids, FORM.draws)
    assert torch.equal(fields["images"], FORM(darker(given["images"], ids, 2), uniforms))
    assert torch.equal(fields["labels"], given["labels"])
    assert torch.equal(
        ClassifierView(FORM).train(given, ids, 3, 2)["images"], FORM(given["images"], uniforms)
    )


@pytest.mark.parametrize(
    "view", [ClassifierView(FORM, darker), WeakView(WeakStrong(), FORM)], ids=["view", "weak"]
)
def test_the_test_form_of_labelled_images_is_normalised_alone(view):
    given, _ = arrays(images(9))
    plain = view.plain(given)
    assert torch.equal(plain["images"], FORM.plain(given["images"]))
    assert torch.equal(plain["labels"], given["labels"])


def test_labelled_images_come_in_weak_views_of_their_epoch():
    pair, given = WeakStrong(), images()
    source = Source(given, Endless(5, 7, 3), WeakView(pair, FORM), 3)
    for step in range(3):
        fields = source.finish(source.read(step), torch.device("cpu"))
        rows, epochs = source.order.at(step)
        for place, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
            alone = torch.from_numpy(given.images[row])[None]
            weak = pair.weak(alone, np.array([10 * row]), 3, int(epoch))
            assert torch.equal(fields["images"][place], FORM.plain(weak)[0])
            assert fields["labels"][place] == given.labels[row]


@pytest.mark.parametrize("strong_views", [1, 3])
def test_strong_views_have_an_axis_of_their_own(tmp_path, strong_views):
    unlabelled = UnlabelledImages(paths=write(tmp_path, [9, 4], channels=3), ratio=3)
    pair = WeakStrong(strong_views=strong_views)
    view = WeakStrongView(pair, CropFlipView(mean=[0.1, 0.2, 0.3], std=[0.4]))
    source = unlabelled.source(unlabelled.examples(1), view, 4, 1)
    [fields] = InPlace(source).batches(2, Worker(), 3)
    pixels = np.stack([picture((i - 3) // 10, 3) for i in fields["ids"].tolist()])
    weak, strong = pair(torch.from_numpy(pixels), fields["ids"], 1, 2)
    assert fields["strong"].shape == strong.shape == (12, strong_views, 3, 6, 6)
    assert torch.equal(fields["weak"], view.form.plain(weak))
    for number in range(strong_views):
        assert torch.equal(fields["strong"][:, number], view.form.plain(strong[:, number]))
    assert source.read(2).arrays["strong"].dtype == torch.uint8  # what travels is small


def test_no_images_have_views_of_none():
    empty, ids = torch.empty(0, 1, 8, 8, dtype=torch.uint8), np.empty(0, np.int64)
    view = WeakStrongView(WeakStrong(strong_views=2), FORM)
    fields = view.finish(view.train({"images": empty}, ids, 0, 0))
    assert fields["strong"].shape == (0, 2, 1, 8, 8)
    assert view.plain({"images": empty})["images"].shape == (0, 1, 8, 8)
    labels = torch.empty(0, dtype=torch.int64)
    classified = ClassifierView(FORM).train({"images": empty, "labels": labels}, ids, 0, 0)
    assert classified["images"].shape == (0, 1, 8, 8)


def test_a_classifier_is_fed_shuffled_images_by_the_trainer_or_the_workers():
    sources = [
        Source(images(9), Shuffled(9, 4, 0), ClassifierView(FORM, darker), 0, by)
        for by in ("workers", "trainer")
    ]
    steps = [list(InPlace(source).batches(1, Worker(), 5)) for source in sources]
    for one, other in zip(*steps, strict=True):
        assert one.keys() == other.keys() == {"images", "labels"}
        assert all(torch.equal(one[name], other[name]) for name in one)
