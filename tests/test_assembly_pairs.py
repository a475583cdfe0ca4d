import runpy
from pathlib import Path

import here
import pytest

from raykb.assembly import Pairs
from raykb.config import ConfigError, Problems

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
