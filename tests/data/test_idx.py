import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from raykb.data import idx
from raykb.data.idx import idx_records, read_idx


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_plain_and_gzipped_files_are_read(tmp_path: Path, shape: tuple[int, ...]):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    plain, zipped = tmp_path / "a", tmp_path / "a.gz"
    plain.write_bytes(idx_bytes(array))
    zipped.write_bytes(gzip.compress(idx_bytes(array)))
    assert np.array_equal(read_idx(plain), array)
    assert np.array_equal(read_idx(zipped), array)


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str):
    whole = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    whole = gzip.compress(whole) if name.endswith(".gz") else whole
    for length in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match="IDX file"):
            read_idx(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        idx_bytes(np.zeros(4, np.float32), kind=13),
        idx_bytes(np.zeros((1, 1, 1, 1, 1), np.uint8)),
        b"\x01\x02\x08\x01\x00\x00\x00\x00",
    ],
)
def test_another_format_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes"):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_what_follows_the_array_is_refused(tmp_path: Path, name: str):
    content = idx_bytes(np.zeros(4, np.uint8)) + b"more"
    (tmp_path / name).write_bytes(gzip.compress(content) if name == "a.gz" else content)
    with pytest.raises(ValueError, match=r"not a whole IDX file: .*\(4,\), and more follows"):
        read_idx(tmp_path / name)


def peak_bytes_of_reading(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="IDX file"):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_inflated_no_further_than_its_header_says(tmp_path: Path):
    bomb = gzip.compress(idx_bytes(np.zeros((2, 3), np.uint8)) + bytes(2**26))
    (tmp_path / "a.gz").write_bytes(bomb)
    assert peak_bytes_of_reading(tmp_path / "a.gz") < 2**21


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_a_header_that_the_file_cannot_justify_takes_no_memory(tmp_path: Path, name: str):
    content = struct.pack(">HBB3I", 0, 8, 3, 60_000, 28, 28) + bytes(5)
    (tmp_path / name).write_bytes(gzip.compress(content) if name == "a.gz" else content)
    assert peak_bytes_of_reading(tmp_path / name) < 2**21


def test_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert idx._MOST_BYTES == 2**31
    monkeypatch.setattr(idx, "_MOST_BYTES", 5)
    (tmp_path / "a").write_bytes(idx_bytes(np.zeros((2, 3), np.uint8)))
    with pytest.raises(ValueError, match="which are 6 bytes; at most 5 are read of an IDX file"):
        read_idx(tmp_path / "a")


def test_blocks_are_read_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(idx, "_BLOCK_BYTES", 5)
    array = np.arange(42, dtype=np.uint8).reshape(2, 3, 7)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx_bytes(array)))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array)


def test_an_array_of_nothing_is_one(tmp_path: Path):
    (tmp_path / "a").write_bytes(idx_bytes(np.zeros((0, 28, 28), np.uint8)))
    assert read_idx(tmp_path / "a").shape == (0, 28, 28)


def write_part(root: Path, images: int, labels: list[int]) -> None:
    pixels = np.arange(images * 6, dtype=np.uint8).reshape(images, 2, 3)
    (root / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
    content = gzip.compress(idx_bytes(np.array(labels, np.uint8)))
    (root / "t10k-labels-idx1-ubyte.gz").write_bytes(content)


def test_a_part_is_read_with_names_given_or_numbered(tmp_path: Path):
    write_part(tmp_path, 3, [2, 0, 1])
    records = idx_records(tmp_path, "t10k", None)
    assert records.classes == ("0", "1", "2")
    assert records.labels.tolist() == [2, 0, 1]
    assert records.ids.tolist() == [0, 1, 2]
    (image,) = records.read(np.array([1]))
    assert image.tolist() == [[6, 7, 8], [9, 10, 11]]
    assert records.origin(1) == f"{tmp_path}/t10k-images-idx3-ubyte, image 1"
    assert idx_records(tmp_path, "t10k", ["a", "b", "c"]).classes == ("a", "b", "c")


def test_labels_without_a_class_images_or_files_are_refused(tmp_path: Path):
    write_part(tmp_path, 3, [2, 0, 1])
    with pytest.raises(ValueError, match=r"image 0: label 2 is not in 0\.\.1"):
        idx_records(tmp_path, "t10k", ["a", "b"])
    write_part(tmp_path, 3, [2, 0])
    with pytest.raises(ValueError, match=r"shape \(3, 2, 3\) and the labels \(2,\)"):
        idx_records(tmp_path, "t10k", None)
    write_part(tmp_path, 0, [])
    with pytest.raises(ValueError, match="no images"):
        idx_records(tmp_path, "t10k", None)
    with pytest.raises(FileNotFoundError, match="must hold train-images-idx3-ubyte"):
        idx_records(tmp_path, "train", None)
