from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raykb.data.parquet import parquet_files, parquet_records, write_shards

CLASSES = ["cat", "dog"]
ROWS = [(100 + i, bytes([i]) * 50, i % 2) for i in range(20)]


def table(**columns: pa.Array) -> pa.Table:
    whole = {
        "id": pa.array([0, 1, 2]),
        "image": pa.array([b"a", b"b", b"c"]),
        "label": pa.array([0, 1, 0]),
    }
    return pa.table({k: v for k, v in (whole | columns).items() if v is not None})


def test_rows_come_back_as_they_were_written_from_files_and_folders(tmp_path: Path):
    shards = write_shards(tmp_path, ROWS, CLASSES, shard_bytes=350)
    assert [path.name for path in shards] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert sorted(tmp_path.iterdir()) == shards  # nothing temporary is left
    for paths in (str(tmp_path), [str(shard) for shard in shards]):
        records = parquet_records(paths)
        assert records.ids.tolist() == [row[0] for row in ROWS]
        assert list(records.read(records.rows)) == [row[1] for row in ROWS]
        assert records.labels.tolist() == [row[2] for row in ROWS]
        assert records.classes == ("cat", "dog")


@pytest.mark.parametrize("groups", [1, 3, 100])
def test_single_rows_are_read_across_shards_and_row_groups(tmp_path: Path, groups: int):
    for path in write_shards(tmp_path, ROWS, CLASSES, shard_bytes=350):
        pq.write_table(pq.read_table(path), path, row_group_size=groups)
    records = parquet_records(str(tmp_path)).subset(np.array([0, 6, 7, 13, 19]))
    assert list(records.read(records.rows)) == [ROWS[i][1] for i in (0, 6, 7, 13, 19)]


def test_an_origin_names_file_and_row(tmp_path: Path):
    shards = write_shards(tmp_path, ROWS, CLASSES, shard_bytes=350)
    records = parquet_records(str(tmp_path))
    assert records.origin(6) == f"{shards[0]}, row 6"
    assert records.origin(7) == f"{shards[1]}, row 0"


def test_classes_come_from_the_argument_the_file_or_the_labels(tmp_path: Path):
    path = tmp_path / "plain.parquet"
    pq.write_table(table(), path)
    assert parquet_records(str(path)).classes == ("0", "1")
    assert parquet_records(str(path), ["x", "y", "z"]).classes == ("x", "y", "z")
    (named,) = write_shards(tmp_path, ROWS, CLASSES)
    assert parquet_records(str(named)).classes == parquet_records(str(named), CLASSES).classes


def test_labels_without_names_are_not_numbered_beyond_the_rows(tmp_path: Path):
    path = tmp_path / "plain.parquet"
    pq.write_table(table(label=pa.array([0, 1, 2**40])), path)
    with pytest.raises(ValueError, match=r"row 2: label 1099511627776 is not in 0\.\.2"):
        parquet_records(str(path))


@pytest.mark.parametrize("names", ["5", "[1, 2]", "cat", b"\xff"])
def test_metadata_of_another_kind_are_refused(tmp_path: Path, names: str | bytes):
    path = tmp_path / "odd.parquet"
    pq.write_table(table().replace_schema_metadata({"classes": names}), path)
    with pytest.raises(ValueError, match=r"odd\.parquet: cannot be read"):
        parquet_records(str(path))


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint8()])
def test_other_integers_and_large_binaries_are_read(tmp_path: Path, kind: pa.DataType):
    path = tmp_path / "other.parquet"
    images = pa.array([b"a", b"b", b"c"], pa.large_binary())
    pq.write_table(table(id=pa.array([5, 6, 7], kind), image=images), path)
    records = parquet_records(str(path))
    assert records.ids.dtype == np.int64
    assert list(records.read(np.array([1, 2]))) == [b"b", b"c"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None}, "column 'image' is missing, must be binary"),
        ({"image": pa.array(["a", "b", "c"])}, "column 'image' is string, must be binary"),
        ({"label": pa.array([0.0, 1.0, 2.0])}, "column 'label' is double, must be int64"),
        ({"id": None, "label": None}, "'id' is missing.*'label' is missing"),
        ({"label": pa.array([0, None, 1])}, "column 'label' has empty cells"),
        ({"label": pa.array([0, 1, -1])}, "row 2: label -1"),
        ({"label": pa.array([0, 5, 7])}, "row 1: label 5.*row 2: label 7"),
        ({"label": pa.array([0, 1, 2**40])}, "row 2: label 1099511627776"),
        ({"id": pa.array([4, 4, 5])}, "row 1: id 4 is taken"),
    ],
)
def test_another_layout_is_refused_naming_file_and_column(
    tmp_path: Path, columns: dict[str, pa.Array], message: str
):
    path = tmp_path / "odd.parquet"
    pq.write_table(table(**columns), path)
    with pytest.raises(ValueError, match=f"(?s)odd.parquet.*{message}"):
        parquet_records(str(path), ["cat", "dog"])


def test_shards_of_two_sets_are_refused(tmp_path: Path):
    write_shards(tmp_path / "a", ROWS, CLASSES)
    write_shards(tmp_path / "b", [(1000, b"x", 0)], ["bird"])
    with pytest.raises(ValueError, match=r"(?s)must be the same everywhere.*cat.*bird"):
        parquet_records([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(ValueError, match=r"(?s)names given.*'dog', 'cat'.*'cat', 'dog'"):
        parquet_records(str(tmp_path / "a"), ["dog", "cat"])


def nothing(folder: Path) -> str:
    return str(folder / "absent")


def empty_folder(folder: Path) -> str:
    return str(folder)


def no_paths(folder: Path) -> list[str]:
    return []


@pytest.mark.parametrize("paths", [nothing, empty_folder, no_paths])
def test_missing_files_are_named(tmp_path: Path, paths: Callable[[Path], str | list[str]]):
    with pytest.raises(FileNotFoundError, match=r"[Pp]arquet file"):
        parquet_records(paths(tmp_path))


def test_hidden_files_of_a_folder_are_passed_over(tmp_path: Path):
    shards = write_shards(tmp_path, ROWS, CLASSES)
    for name in ("._00000.parquet", "_metadata.parquet"):
        (tmp_path / name).write_bytes(b"not of ours")
    assert parquet_files([str(tmp_path)]) == shards


@pytest.mark.parametrize("name", ["0.parquet", "z.parquet"])
def test_what_is_no_file_in_a_folder_is_refused_by_its_own_name(tmp_path: Path, name: str):
    write_shards(tmp_path, ROWS, CLASSES)
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"{name}: is a link to nothing, must be a Parq"):
        parquet_files([str(tmp_path)])
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name}: is a folder, must be a Parquet file"):
        parquet_files([str(tmp_path)])


def test_a_file_without_rows_is_refused(tmp_path: Path):
    path = tmp_path / "empty.parquet"
    pq.write_table(table()[:0].cast(table().schema), path)
    with pytest.raises(ValueError, match=r"empty.parquet.*no rows"):
        parquet_records(str(path))


def test_what_is_no_parquet_or_damaged_is_refused(tmp_path: Path):
    (path,) = write_shards(tmp_path, ROWS, CLASSES)
    whole = path.read_bytes()
    for position in range(0, len(whole), 10):
        path.write_bytes(whole[:position])
        with pytest.raises(ValueError, match=r"00000\.parquet: cannot be read as Parquet"):
            parquet_records(str(path))


@pytest.mark.parametrize("column", ["id", "image", "label"])
def test_a_damaged_page_is_noticed_and_the_file_named(tmp_path: Path, column: str):
    (path,) = write_shards(tmp_path, ROWS, CLASSES)
    chunk = pq.read_metadata(path).row_group(0).column(("id", "image", "label").index(column))
    damaged = bytearray(path.read_bytes())
    damaged[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"00000\.parquet: cannot be read as Parquet"):
        list(parquet_records(str(path)).read(np.arange(20)))
