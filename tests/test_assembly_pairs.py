import runpy
from pathlib import Path

import here
import numpy as np
import pytest

from raykb.assembly import Pairs
from raykb.assembly.pairs import drawn_patches
from raykb.config import ConfigError, Problems
from raykb.data.decoding import encode_png
from raykb.data.parquet import write_shards

PIPELINES = Path(__file__).parents[1] / "pipelines"
CONFIG = PIPELINES / "configs/pairs/vilt_emoji.yaml"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(PIPELINES / "vilt.py"))


def opened(script, *settings):
    return Pairs.opened(here.resolved(script, CONFIG, *settings), Problems())


def test_the_vocabulary_is_learnt_from_training_captions_and_a_run_keeps_the_one_it_began_with(
    script,
):
    data = opened(script)
    assert opened(script).vocabulary.vocabulary == data.vocabulary.vocabulary
    before = [*data.vocabulary.vocabulary, "zebra"]
    assert data.kept("\n".join(before) + "\n").vocabulary.vocabulary[-1] == "zebra"


def test_a_vocabulary_that_the_model_has_no_room_for_is_refused_with_the_remedy(script):
    with pytest.raises(ConfigError, match=r"set model\.vocabulary to"):
        opened(script, "model.vocabulary=20")


def test_images_without_captions_are_refused_before_the_start(script):
    with pytest.raises(ConfigError, match="no captions; take emoji_sample"):
        opened(script, "data={name: fashion_mnist_sample}")


def test_a_missing_shard_is_named(script, tmp_path):
    gone = tmp_path / "gone.parquet"
    with pytest.raises(ConfigError, match=r"gone\.parquet"):
        opened(script, f"data={{name: parquet, train: {gone}, test: {gone}}}")


def test_images_that_keep_their_shape_are_padded_to_the_largest(script, tmp_path):
    pictures = [np.full((3, *shape), 99, np.uint8) for shape in ((24, 32), (32, 24), (30, 30))]
    rows = [(n, encode_png(picture), n % 2, f"picture {n}") for n, picture in enumerate(pictures)]
    write_shards(tmp_path, rows, ["a", "b"])
    data = f"data={{name: parquet, train: {tmp_path}, test: {tmp_path}}}"
    found = opened(script, data, "view.padding=0", "captions.shorter=18", "model.patch=6")
    assert found.labelled.shape == (3, 24, 24)
    test = found.read(8)["test"]
    assert test.sizes.tolist() == [[18, 24], [24, 18], [18, 18]]
    assert test.images.images.shape == (3, 3, 24, 24)
    assert test.images.images[0].sum() == 99 * 3 * 18 * 24


def test_what_takes_images_to_be_squares_is_refused_where_they_keep_their_shape(script):
    with pytest.raises(ConfigError, match="null with this view, which would move") as refused:
        opened(script, "captions.shorter=4", "data.image_size=32")
    assert "null where data.image_size is 32" in str(refused.value)
    assert "at least model.patch" in str(refused.value)


@pytest.mark.parametrize(("most", "count"), [("null", 0), ("8", 16), ("16", 0)])
def test_patches_are_drawn_only_where_a_method_sees_less_than_there_are(script, most, count):
    config = here.resolved(script, CONFIG, f"method.most_patches={most}")
    assert drawn_patches(config, (32, 32)) == count
