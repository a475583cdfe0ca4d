"""Row groups of Parquet files: found, checked, and read again while they are what they were."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shared_images import write

from raykb.data import shards
from raykb.data.sharded_images import ShardedImages
from raykb.data.shards import find_shards, read_shard


def test_row_groups_are_shards(tmp_path):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files", [20, 3, 17, 10])
    tables = [pq.read_table(path) for path in sorted((tmp_path / "files").iterdir())]
    pq.write_table(pa.concat_tables(tables), tmp_path / "one.parquet", row_group_size=15)
    found, ids = find_shards(str(tmp_path / "one.parquet"))
    assert [(s.group, s.start, s.count) for s in found] == [
        (0, 0, 15),
        (1, 15, 15),
        (2, 30, 15),
        (3, 45, 5),
    ]
    assert ids.tolist() == [10 * n + 3 for n in range(50)]
    assert read_shard(found[3]).column("id").to_pylist() == ids[45:].tolist()


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
def test_a_wrong_file_is_refused(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        find_shards(str(tmp_path))


def test_an_empty_directory_one_of_labels_alone_and_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.csv").write_text("id,label\n1,2\n")
    for name in ("empty", "labels", "absent"):
        with pytest.raises(FileNotFoundError, match=f"{name}: must be a Parquet file or a folder"):
            find_shards(str(tmp_path / name))


def test_no_parquet_and_no_rows_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"text\.parquet: cannot be read as Parquet"):
        find_shards(str(tmp_path / "text.parquet"))
    empty = pa.table({"id": pa.array([], pa.int64()), "image": pa.array([], pa.binary())})
    pq.write_table(empty, tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no rows; there must be at least one image"):
        find_shards(str(tmp_path / "none.parquet"))


def test_an_id_in_two_files_is_refused(tmp_path):
    files = write(tmp_path, [20, 30])
    with pytest.raises(ValueError, match=r"50 ids occur more than once; as 3 in .*row 0 and in"):
        find_shards([files, files])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_file_that_has_changed_since_it_was_found_is_refused(tmp_path, groups):
    path = Path(write(tmp_path, [20])) / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=10)
    images = ShardedImages(paths=str(path))
    pq.write_table(table.slice(0, 10 * groups - 1), path, row_group_size=10)
    with pytest.raises(ValueError, match=r"00000\.parquet: row group 1 has not the 10 rows"):
        images.read(np.arange(20))


def test_many_shards_are_kept_while_they_are_small(tmp_path, monkeypatch):
    found, _ = find_shards(write(tmp_path, [1] * 30))
    tables = shards._Tables()
    whole = [tables(shard) for shard in found]
    assert len(tables._kept) == 30
    each = tables._bytes // 30
    monkeypatch.setattr(shards, "_CACHE_BYTES", 4 * each + each // 2)
    tables = shards._Tables()
    assert all(tables(shard).equals(table) for shard, table in zip(found, whole, strict=True))
    assert len(tables._kept) == 4
    assert tables._bytes == sum(table.nbytes for table in tables._kept.values())
