"""The section of unlabelled images: what is wrong with it, and the source that it makes."""

import pytest
from shared_images import write

from raykb.data.image_views import WeakStrongView
from raykb.data.strong import WeakStrong
from raykb.data.unlabelled import UnlabelledImages
from raykb.data.views import CropFlipView

VIEW = WeakStrongView(WeakStrong(), CropFlipView(mean=[0.3], std=[0.4]))


def test_every_setting_reaches_the_source(tmp_path):
    paths = write(tmp_path, [20, 3, 17, 10], channels=3)
    settings = UnlabelledImages(
        paths=paths,
        image_size=5,
        channels=1,
        on_bad_image="raise",
        mix_shards=4,
        ratio=5,
        views_by="trainer",
    )
    examples = settings.examples(9)
    assert (examples.shape, examples.on_bad_image, examples.seed) == ((1, 5, 5), "raise", 9)
    source = settings.source(examples, VIEW, 2, 9)
    assert (source.order.batch(0), source.order.steps_per_epoch) == (10, 5)
    assert (source.seed, source.views_by, source.view) == (9, "trainer", VIEW)
    numbers = [sum(row >= end for end in (20, 23, 40)) for row in source.order.at(0).rows]
    assert len(set(numbers)) > 2  # shards that are mixed
    assert len(UnlabelledImages().examples(0)) == 10_000


def test_a_batch_of_more_than_there_are_is_refused(tmp_path):
    settings = UnlabelledImages(paths=write(tmp_path, [9]), ratio=5)
    with pytest.raises(ValueError, match=r"batch_size: 10 rows .* from 1 to the 9 that there are"):
        settings.source(settings.examples(0), VIEW, 2, 0)


def test_every_wrong_setting_is_named():
    with pytest.raises(
        ValueError,
        match="image_size: 0, must be above 0, or null; channels: 2, must be 1 or 3, or null; "
        "on_bad_image: 'skip', must be 'replace' or 'raise'; mix_shards: 0, must be at least 1; "
        "ratio: 0, must be at least 1; views_by: 'gpu', must be 'workers' or 'trainer'",
    ):
        UnlabelledImages(
            image_size=0, channels=2, on_bad_image="skip", mix_shards=0, ratio=0, views_by="gpu"
        )
