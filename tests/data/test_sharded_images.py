"""Images in files: read by row, and what becomes of those that cannot be decoded."""

import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shared_images import SIDE, picture, write

from raykb.data.sharded_images import ShardedImages

EVERY = np.arange(50)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """50 images in shards of unequal size."""
    return write(tmp_path_factory.mktemp("files"), [20, 3, 17, 10])


def test_rows_are_read_in_the_order_asked_for(files):
    images = ShardedImages(paths=files)
    rows = np.array([49, 0, 21, 20, 0, 39, 40])
    found = images.read(rows)
    assert found.arrays.keys() == {"images"}
    assert np.array_equal(found.arrays["images"], np.stack([picture(row) for row in rows]))
    assert found.ids.tolist() == images.ids[rows].tolist() == (10 * rows + 3).tolist()
    assert found.problems == [""] * 7


def test_it_says_what_it_has(files):
    images = ShardedImages(paths=files)
    assert (len(images), images.shape) == (50, (1, SIDE, SIDE))
    assert images.counts.tolist() == [20, 3, 17, 10]
    assert images.ids.tolist() == [10 * n + 3 for n in range(50)]
    assert images.files == [str(path) for path in sorted(Path(files).iterdir())]


def test_it_travels_without_its_ids_and_finds_its_files_from_any_folder(files, monkeypatch):
    monkeypatch.chdir(Path(files).parent)
    images = ShardedImages(paths=Path(files).name)
    monkeypatch.chdir("/")
    there = pickle.loads(pickle.dumps(images))
    assert there._ids is None
    assert np.array_equal(there.ids, images.ids)
    assert np.array_equal(there.read(EVERY).arrays["images"], images.read(EVERY).arrays["images"])


def test_a_subset_reads_its_rows(files):
    images = ShardedImages(paths=files).subset(np.array([7, 30, 8])).subset(np.array([1, 0]))
    assert (len(images), images.ids.tolist()) == (2, [303, 73])
    assert np.array_equal(images.read(np.array([1])).arrays["images"][0], picture(7))


def test_the_embedded_sample_is_at_hand():
    images = ShardedImages()
    assert (len(images), images.shape) == (10_000, (1, 28, 28))


def test_images_are_brought_to_a_size_and_a_number_of_channels(files):
    images = ShardedImages(paths=files, image_size=4, channels=3)
    assert images.shape == images.read(EVERY).arrays["images"].shape[1:] == (3, 4, 4)


def test_the_digest_tells_other_ids_and_other_shards_but_not_where_they_are(tmp_path):
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    for folder, counts in zip(folders, ([8, 4], [8, 4], [4, 8], [8, 5]), strict=True):
        write(folder, counts)
    one, same_elsewhere, *others = (ShardedImages(paths=str(folder)).digest for folder in folders)
    assert one == same_elsewhere
    assert len({one, *others}) == 3


# ---------------------------------------------------------------------- broken images


def test_a_broken_image_is_replaced_by_another_of_its_shard_and_no_row_moves(tmp_path):
    images = ShardedImages(paths=write(tmp_path, [20, 3, 17, 10], broken=(5, 30)), seed=7)
    found = images.read(EVERY)
    assert found.ids.tolist() == images.ids.tolist()
    for row, problem in enumerate(found.problems):
        image = found.arrays["images"][row]
        if row not in (5, 30):
            assert np.array_equal(image, picture(row))
            assert problem == ""
    for row, shard, place in ((5, range(20), "00000.*row 5"), (30, range(23, 40), "00002.*row 7")):
        image = found.arrays["images"][row]
        assert [n for n in shard if n != row and np.array_equal(image, picture(n))]
        assert re.search(rf"{place}: no image file of a known kind ", found.problems[row])
        assert np.array_equal(images.read(np.array([row])).arrays["images"][0], image)
    others = [ShardedImages(paths=images.files, seed=seed) for seed in range(8)]
    drawn = {other.read(np.array([5])).arrays["images"].tobytes() for other in others}
    assert len(drawn) > 2


def test_a_broken_image_is_refused_with_file_and_row(tmp_path):
    images = ShardedImages(paths=write(tmp_path, [9, 9], broken=(11,)), on_bad_image="raise")
    images.read(np.arange(11))
    with pytest.raises(ValueError, match=r"00001\.parquet, row 2: .*on_bad_image to 'replace'"):
        images.read(np.array([11]))


def test_a_shard_without_a_good_image_is_refused(tmp_path):
    images = ShardedImages(paths=write(tmp_path, [9, 8], broken=range(9, 17)))
    with pytest.raises(ValueError, match=r"00001\.parquet, row \d: .*nor can any of 32 others"):
        images.read(np.array([10]))


def test_files_without_a_good_image_are_refused_at_once(tmp_path):
    with pytest.raises(
        ValueError, match=r"none of the images that were tried .*00001\.parquet, row 8: "
    ):
        ShardedImages(paths=write(tmp_path, [9, 9], broken=range(18)))


def test_a_first_shard_without_a_good_image_is_not_all_that_is_looked_at(tmp_path):
    images = ShardedImages(paths=write(tmp_path, [40, 9], broken=range(40)))
    assert images.shape == (1, SIDE, SIDE)


def test_where_the_form_is_set_no_image_is_decoded_for_it(tmp_path):
    paths = write(tmp_path, [9], broken=range(9))
    assert ShardedImages(paths=paths, image_size=5, channels=3).shape == (3, 5, 5)


def test_an_image_of_another_form_is_refused_with_file_and_row(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, side in zip(folders, (6, 7), strict=True):
        folder.mkdir()
        write(folder, [8], side=side)
    table = pq.read_table(folders[1])
    ids = pa.array(range(100, 108))
    pq.write_table(table.set_column(0, "id", ids), folders[1] / "00000.parquet")
    paths = list(map(str, folders))
    message = r"b/00000\.parquet, row 1: an image of 1 channel of 7 x 7 pixels, .*set image_size"
    with pytest.raises(ValueError, match=message):
        ShardedImages(paths=paths).read(np.array([9]))
    assert ShardedImages(paths=paths, image_size=6).read(np.arange(16)).problems == [""] * 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"channels": 2, "image_size": 0},
            "image_size: 0, must be .*; channels: 2, must be 1 or 3",
        ),
        ({"on_bad_image": "skip"}, "on_bad_image: 'skip', must be 'replace' or 'raise'"),
    ],
)
def test_wrong_settings_are_refused(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        ShardedImages(paths=files, **arguments)
