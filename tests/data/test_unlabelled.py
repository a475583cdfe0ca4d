"""Unlabelled images: their order, their views, and what is wrong with them."""

import itertools
import logging
import pickle
import threading
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raykb.data import unlabelled
from raykb.data.decoding import encode_png
from raykb.data.loader import LoaderStream
from raykb.data.order import Order, Shard, find_shards
from raykb.data.parquet import write_shards
from raykb.data.strong import WeakStrong

SIDE = 6


def picture(number, channels=1, side=SIDE):
    """Pixels that say which image it is."""
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (channels, side, side), dtype=np.uint8)


def write(folder, counts, *, broken=(), **form):
    """Write shards of so many images; ids are 10 times an image's number + 3."""
    numbers = itertools.count()
    for shard, count in enumerate(counts):
        rows = []
        for number in itertools.islice(numbers, count):
            file = b"no image" if number in broken else encode_png(picture(number, **form))
            rows.append((10 * number + 3, file, 0))
        [path] = write_shards(folder / "part", rows, ["a"])
        path.rename(folder / f"{shard:05d}.parquet")
    (folder / "part").rmdir()
    return str(folder)


def stream(paths, batch_size=8, **arguments):
    settings = {"seed": 0, "view": WeakStrong()} | arguments
    return LoaderStream(paths=paths, batch_size=batch_size, **settings)


def take(source, count, start=0, **arguments):
    taken = list(itertools.islice(source.batches(start, **arguments), count))
    source.close()
    return taken


def ids(views):
    return [step.ids.tolist() for step in views]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(mine, theirs)
        for a, b in zip(one, other, strict=True)
        for mine, theirs in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """50 images in shards of unequal size."""
    return write(tmp_path_factory.mktemp("files"), [20, 3, 17, 10])


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_own_random_numbers_are_left_to_the_training(files, workers):
    before = torch.get_rng_state()
    take(stream(files, workers=workers), 2)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- order


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("mix", [1, 3])
def test_an_epoch_has_each_row_at_most_once_whatever_the_ranks(size, mix):
    shards = [
        Shard("a", 0, 0, 20),
        Shard("a", 1, 20, 3),
        Shard("b", 0, 0, 17),
        Shard("c", 0, 0, 10),
    ]
    order = Order(shards, batch_size=8, seed=1, mix_shards=mix)
    assert (order.count, order.steps_per_epoch) == (50, 6)
    for epoch in range(3):
        seen = []
        for step in range(epoch * 6, epoch * 6 + 6):
            parts = [np.stack(order.rows(step, rank, size), 1) for rank in range(size)]
            assert [len(part) for part in parts] == [8 // size] * size
            assert np.array_equal(np.concatenate(parts), np.stack(order.rows(step), 1))
            seen += [tuple(row) for part in parts for row in part.tolist()]
        assert len(seen) == len(set(seen)) == 48
        assert all(0 <= row < shards[number].count for number, row in seen)


def test_orders_differ_between_epochs_and_seeds_and_are_the_same_again():
    shards = [Shard("a", group, 0, 10) for group in range(4)]
    order = Order(shards, batch_size=10, seed=0)
    first = [order.rows(step) for step in range(12)]
    whole = {tuple(zip(*map(np.ndarray.tolist, rows), strict=True)) for rows in first}
    assert len(whole) == 12
    again = Order(shards, batch_size=10, seed=0)
    for step in (11, 3, 7, 0):  # in any order
        assert np.array_equal(again.rows(step), first[step])
    other = Order(shards, batch_size=10, seed=1)
    assert not all(np.array_equal(other.rows(step), first[step]) for step in range(4))


def test_shards_are_read_one_after_the_other_or_mixed():
    shards = [Shard("a", group, 0, 100) for group in range(6)]
    apart, mixed = (Order(shards, batch_size=50, seed=0, mix_shards=mix) for mix in (1, 3))
    assert {len(set(apart.rows(step)[0])) for step in range(12)} == {1}
    assert {len(set(mixed.rows(step)[0])) for step in range(12)} == {3}


def test_a_step_of_millions_of_rows_is_found_without_those_before_it():
    order = Order([Shard("a", group, 0, 10_000) for group in range(500)], batch_size=448, seed=0)
    shards, rows = order.rows(10**9)
    assert len(set(zip(shards.tolist(), rows.tolist(), strict=True))) == 448
    assert len(order._rows) <= 2  # shards whose rows were permuted
    assert len(pickle.dumps(order)) < 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 0},
            "batch_size: 0 unlabelled images of each step; must be from 1 to the 5",
        ),
        ({"batch_size": 6}, "batch_size: 6"),
        ({"batch_size": 2, "mix_shards": 0}, "mix_shards: 0; must be at least 1"),
    ],
)
def test_wrong_orders_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Order([Shard("a", 0, 0, 5)], seed=0, **arguments)


@pytest.mark.parametrize(
    ("rank", "size", "message"),
    [
        (0, 3, "batch_size: 8 .* do not divide by 3 workers"),
        (2, 2, r"rank: 2; must be in 0\.\.1"),
    ],
)
def test_ranks_that_are_none_are_refused_at_once(files, rank, size, message):
    with pytest.raises(ValueError, match=message):
        stream(files).batches(0, rank, size)


# ---------------------------------------------------------------------- views


def test_the_images_of_a_step_are_those_of_its_ids(files):
    source = stream(files, view=WeakStrong(crop=0, flip=False))
    for step in take(source, 6):
        expected = np.stack([picture((i - 3) // 10) for i in step.ids.tolist()])
        assert np.array_equal(step.weak.numpy(), expected)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_is_seen_depends_on_the_step_alone(files, workers):
    whole = take(stream(files), 14)
    assert ids(whole)[:6] != ids(whole)[6:12]
    for start in (0, 5, 9):  # the end of an epoch lies behind and before
        resumed = take(stream(files, workers=workers, prefetch=3), 14 - start, start)
        assert same(resumed, whole[start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_see_what_one_sees(files, workers):
    whole = take(stream(files), 7)
    halves = [take(stream(files, workers=workers), 7, rank=rank, size=2) for rank in (0, 1)]
    joined = [
        type(a)(*map(torch.cat, zip(a, b, strict=True))) for a, b in zip(*halves, strict=True)
    ]
    assert same(joined, whole)


def test_the_trainer_makes_the_same_views(files):
    whole = take(stream(files), 7)
    assert same(take(stream(files, views="trainer", workers=1), 7), whole)


def test_row_groups_are_shards(files, tmp_path):
    tables = [pq.read_table(path) for path in sorted(Path(files).iterdir())]
    pq.write_table(pa.concat_tables(tables), tmp_path / "one.parquet", row_group_size=15)
    shards, found = find_shards(str(tmp_path / "one.parquet"))
    assert [(s.group, s.start, s.count) for s in shards] == [
        (0, 0, 15),
        (1, 15, 15),
        (2, 30, 15),
        (3, 45, 5),
    ]
    assert found.tolist() == [10 * n + 3 for n in range(50)]
    source = stream(str(tmp_path), view=WeakStrong(crop=0, flip=False))
    for step in take(source, 6):
        expected = np.stack([picture((i - 3) // 10) for i in step.ids.tolist()])
        assert np.array_equal(step.weak.numpy(), expected)


def test_a_stream_travels_also_while_it_runs(files):
    source = stream(files, workers=1)
    running = source.batches(0)
    next(running)
    assert same(take(pickle.loads(pickle.dumps(source)), 3), take(stream(files), 3))
    source.close()
    source.close()


def test_a_stream_says_what_it_has(files, monkeypatch):
    now = 100.0
    monkeypatch.setattr(unlabelled, "time", types.SimpleNamespace(monotonic=lambda: now))
    source = stream(files)
    assert (source.count, source.steps_per_epoch, source.shape) == (50, 6, (1, SIDE, SIDE))
    assert source.ids().tolist() == [10 * n + 3 for n in range(50)]
    take(source, 2)
    assert source.figures() == {"stream/images_per_s": 0.0, "stream/broken_images": 0.0}
    now += 2.0
    assert source.figures() == {"stream/images_per_s": 8.0, "stream/broken_images": 0.0}


def test_the_embedded_sample_is_at_hand():
    source = stream(None, batch_size=64)
    assert (source.count, source.shape) == (10_000, (1, 28, 28))
    [step] = take(source, 1, start=400)
    assert step.weak.shape == step.strong.shape == (64, 1, 28, 28)


def test_images_are_brought_to_a_size_and_a_number_of_channels(files):
    source = stream(files, image_size=4, channels=3)
    assert source.shape == (3, 4, 4)
    assert take(source, 1)[0].strong.shape == (8, 3, 4, 4)


# ---------------------------------------------------------------------- broken images


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_and_no_position_moves(tmp_path, caplog, workers):
    (tmp_path / "whole").mkdir()
    (tmp_path / "torn").mkdir()
    whole = write(tmp_path / "whole", [20, 3, 17, 10])
    torn = write(tmp_path / "torn", [20, 3, 17, 10], broken=(5, 30))
    plain = WeakStrong(crop=0, flip=False)
    told = []
    source = stream(torn, view=plain, workers=workers, tell=lambda *found: told.append(found))
    with caplog.at_level(logging.WARNING):
        seen = take(source, 18)
    assert ids(seen) == ids(take(stream(whole), 18))
    stands_for = {}
    for step in seen:
        for sample, image in zip(step.ids.tolist(), step.weak, strict=True):
            number = (sample - 3) // 10
            if number in (5, 30):
                stands_for.setdefault(number, []).append(image)
            else:
                assert np.array_equal(image.numpy(), picture(number))
    for number, shard in ((5, range(20)), (30, range(23, 40))):
        first, *others = stands_for[number]
        assert others  # epochs, in all of which it is the same one
        assert all(torch.equal(first, other) for other in others)
        assert any(np.array_equal(first.numpy(), picture(n)) for n in shard if n != number)
    assert source.figures()["stream/broken_images"] == 2
    assert len(caplog.messages) == len(told) == 2
    assert {rank for rank, _ in told} == {0}
    assert all(message.startswith(told[n][1]) for n, message in enumerate(caplog.messages))
    assert any("00002.parquet, row 7: " in message for message in caplog.messages)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_refused_with_file_and_row(tmp_path, workers):
    source = stream(write(tmp_path, [9, 9], broken=(11,)), 9, on_bad_image="raise", workers=workers)
    with pytest.raises(
        ValueError, match=r"00001\.parquet, row 2: .*(.|\n)*on_bad_image to 'replace'"
    ):
        take(source, 2)


def test_a_shard_without_a_good_image_is_refused(tmp_path):
    source = stream(write(tmp_path, [9, 8], broken=range(9, 17)))
    with pytest.raises(ValueError, match=r"00001\.parquet, row \d: .*nor can any of 32 others"):
        take(source, 2)


def test_files_without_a_good_image_are_refused_before_the_training(tmp_path):
    with pytest.raises(
        ValueError, match=r"none of the images that were tried .*00001\.parquet, row 8: "
    ):
        stream(write(tmp_path, [9, 9], broken=range(18)))


def test_a_first_shard_without_a_good_image_is_not_all_that_is_looked_at(tmp_path):
    source = stream(write(tmp_path, [40, 9], broken=range(40)))
    assert source.shape == (1, SIDE, SIDE)


def test_where_the_form_is_set_no_image_is_decoded_for_it(tmp_path):
    source = stream(write(tmp_path, [9], broken=range(9)), image_size=5, channels=3)
    assert source.shape == (3, 5, 5)


def test_an_image_of_another_form_is_refused_with_file_and_row(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, side in zip(folders, (6, 7), strict=True):
        folder.mkdir()
        write(folder, [8], side=side)
    table = pq.read_table(folders[1])
    ids = pa.array(range(100, 108))
    pq.write_table(table.set_column(0, "id", ids), folders[1] / "00000.parquet")
    paths = list(map(str, folders))
    message = r"b/00000\.parquet, row \d: an image of 1 channel of 7 x 7 pixels, .*set image_size"
    with pytest.raises(ValueError, match=message):
        take(stream(paths), 2)
    assert take(stream(paths, image_size=6), 2)[0].weak.shape[2:] == (6, 6)


# ---------------------------------------------------------------------- bad input


def columns(**given):
    whole = {"id": [1, 2], "image": [b"a", b"b"]} | given
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            columns(image=None, label=[0, 1]),
            r"a\.parquet: column 'image' is missing, must be binary",
        ),
        (
            columns(id=None),
            r"a\.parquet: column 'id' is missing, must be int64\. It has \['image'\]",
        ),
        (columns(id=["x", "y"]), r"column 'id' is string, must be int64"),
        (columns(id=[1, None]), r"a\.parquet: column 'id' has empty cells"),
        (
            columns(id=pa.array([1, 2**63], pa.uint64())),
            r"a\.parquet: column 'id' is no int64: Integer value 9223372036854775808",
        ),
        (
            columns(id=[4, 4]),
            r"1 ids occur more than once; as 4 in .*a\.parquet, row 0 and in .*row 1",
        ),
    ],
)
def test_a_wrong_file_is_refused_before_the_training(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        stream(str(tmp_path), 1)


def test_an_empty_directory_one_of_labels_alone_and_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.csv").write_text("id,label\n1,2\n")
    for name in ("empty", "labels", "absent"):
        with pytest.raises(FileNotFoundError, match=f"{name}: must be a Parquet file or a folder"):
            stream(str(tmp_path / name), 1)


def test_no_parquet_and_no_rows_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"text\.parquet: cannot be read as Parquet"):
        stream(str(tmp_path / "text.parquet"), 1)
    empty = pa.table({"id": pa.array([], pa.int64()), "image": pa.array([], pa.binary())})
    pq.write_table(empty, tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no rows; there must be at least one image"):
        stream(str(tmp_path / "none.parquet"), 1)


def test_an_id_in_two_files_is_refused(tmp_path, files):
    with pytest.raises(ValueError, match=r"50 ids occur more than once; as 3 in .*row 0 and in"):
        stream([files, files])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_file_that_has_changed_since_the_start_is_refused(tmp_path, groups):
    path = Path(write(tmp_path, [20])) / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=10)
    source = stream(str(path))
    pq.write_table(table.slice(0, 10 * groups - 1), path, row_group_size=10)
    with pytest.raises(ValueError, match=r"00000\.parquet: row group 1 has not the 10 rows"):
        take(source, 2)


def test_the_digest_tells_other_ids_and_other_shards_but_not_where_they_are(tmp_path):
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    for folder, counts in zip(folders, ([8, 4], [8, 4], [4, 8], [8, 5]), strict=True):
        write(folder, counts)
    one, same_elsewhere, *others = (stream(str(folder)).digest for folder in folders)
    assert one == same_elsewhere
    assert len({one, *others}) == 3


def test_a_stream_finds_its_files_from_any_folder(files, monkeypatch):
    monkeypatch.chdir(Path(files).parent)
    source = stream(Path(files).name)
    monkeypatch.chdir("/")
    assert len(source.ids()) == 50
    assert len(take(source, 6)) == 6


def test_many_shards_are_kept_while_they_are_small(tmp_path, monkeypatch):
    paths = write(tmp_path, [1] * 30)
    monkeypatch.setattr(unlabelled, "_table", tables := unlabelled._Tables())
    whole = take(stream(paths, 10), 6)
    assert len(tables._kept) == 30
    each = tables._bytes // 30
    monkeypatch.setattr(unlabelled, "_CACHE_BYTES", 4 * each + each // 2)
    monkeypatch.setattr(unlabelled, "_table", tables := unlabelled._Tables())
    assert same(take(stream(paths, 10), 6), whole)
    assert len(tables._kept) == 4
    assert tables._bytes == sum(table.nbytes for table in tables._kept.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2, "image_size": 0}, "channels: 2, must be 1 or 3, or null; image_size: 0"),
        ({"on_bad_image": "skip"}, "on_bad_image: 'skip', must be 'replace' or 'raise'"),
        ({"views": "gpu"}, "views: 'gpu', must be 'workers' or 'trainer'"),
        ({"timeout_s": 0}, "timeout_s: 0, must be above 0"),
        (
            {"workers": -1, "prefetch": 0},
            "workers: -1, must be at least 0; prefetch: 0, must be at least 1",
        ),
    ],
)
def test_wrong_settings_are_refused(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        stream(files, **arguments)


class Slow(WeakStrong):
    """A view that takes longer than anybody waits."""

    def __call__(self, *given):
        threading.Event().wait(60)


def test_a_loader_that_brings_nothing_is_given_up(files):
    source = stream(files, view=Slow(), workers=1, timeout_s=1)
    with pytest.raises(TimeoutError, match=r"nothing for 1 s.*raise timeout_s"):
        take(source, 1)
