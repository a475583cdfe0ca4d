"""Files that were made to hurt: each is refused in words, runs nothing, and takes no memory."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image, PngImagePlugin
from shared_bounds import MIB, at_most

from raykb import config
from raykb.augment.loss_tables import joined
from raykb.augment.policy import Policy
from raykb.data import cifar, parquet
from raykb.data.datasets import DATASETS
from raykb.data.decathlon import read_task
from raykb.data.decoding import BadImageError, decode
from raykb.data.decoding import encode_png as png_of
from raykb.data.folder import folder_records
from raykb.data.nifti import read_image, read_label
from raykb.data.pairs import LONGEST, captions_of
from raykb.data.parquet import parquet_records, write_shards
from raykb.data.records import bullets
from raykb.data.sharded_images import ShardedImages
from raykb.data.volume_shards import _mapped
from raykb.data.wordpiece import WordPiece
from raykb.engine import checkpoint
from raykb.engine.foreign import DEEPEST, parsed, printable, read_text
from raykb.nas.genotype import Genotype
from raykb.runtime.array_files import ArrayFiles
from raykb.runtime.checking import check
from raykb.runtime.left import record_of
from raykb.runtime.run_files import config_of
from raykb.runtime.runs import run_in
from raykb.runtime.secrets import redacted
from raykb.runtime.spool import Spool
from raykb.runtime.storage import LocalStorage
from raykb.runtime.tracking import replay
from raykb.segmentation.plans import Plan

DEEP = "[" * 100_000 + "]" * 100_000


class Attack:
    """Leaves a file wherever a pickle of it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def attack(tmp_path: Path):
    """A pickle that leaves a file, which must not be there at the end."""
    marker = tmp_path / "was run"
    pickle.loads(pickle.dumps(Attack(marker)))
    assert marker.exists()  # so it works
    marker.unlink()
    yield Attack(marker)
    assert not marker.exists()


# ---------------------------------------------------------------------- programs


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(attack: Attack):
    for data in (checkpoint.encode({"model": attack}), pickle.dumps(attack), b"", b"PK\x03\x04"):
        with pytest.raises(ValueError, match="state: is damaged, or holds more than plain values"):
            checkpoint.decode(data)


@pytest.mark.parametrize("read", [Policy.from_json, Genotype.from_json, Plan.from_json])
def test_a_pickle_in_the_place_of_a_policy_a_genotype_or_a_plan_is_refused(
    read, attack: Attack, tmp_path: Path
):
    (tmp_path / "file").write_bytes(pickle.dumps(attack))
    with pytest.raises(ValueError, match="is no text"):
        read(read_text(tmp_path / "file"))
    with pytest.raises(ValueError, match="not JSON"):
        read(pickle.dumps(attack, 0).decode("latin1"))


def test_a_pickle_in_the_place_of_a_shard_is_refused(attack: Attack, tmp_path: Path):
    (tmp_path / "00000.parquet").write_bytes(pickle.dumps(attack))
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        parquet_records(str(tmp_path))
    (tmp_path / "image.npy").write_bytes(pickle.dumps(attack))
    with pytest.raises(ValueError, match="pickled"):
        _mapped(tmp_path / "image.npy")
    np.save(tmp_path / "label.npy", np.array([attack], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot be|Python objects"):
        _mapped(tmp_path / "label.npy")


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
BATCH = {"batch_label": "one", "labels": [3, 1, 4, 1], "data": IMAGES, "filenames": ["a.png"] * 4}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cifar_s_batches_are_read_as_any_pickle_says(tmp_path: Path, protocol: int, order: str):
    whole = BATCH | {"data": np.asarray(IMAGES, order=order)}
    (tmp_path / "batch").write_bytes(pickle.dumps(whole, protocol))
    images, labels = cifar.read_part([tmp_path / "batch"] * 2)
    assert np.array_equal(images[:4], IMAGES.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels.tolist() == [3, 1, 4, 1] * 2
    assert cifar.read_batch(tmp_path / "batch")["filenames"] == ["a.png"] * 4


def python2(images: np.ndarray) -> bytes:
    """Return a batch as Python 2 pickled it, where a text is bytes."""
    kind = b"cnumpy\ndtype\nq\x01U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + b"J\xff\xff\xff\xff" * 2
    raw = b"T" + struct.pack("<i", images.size) + images.tobytes()
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
    data = made + b"(K\x01" + shape + kind + b"K\x00tb\x89" + raw
    return b"\x80\x02}q\x00(U\x04data" + data + b"tbU\x06labels](K\x03K\x01K\x04K\x01eu."


def test_cifar_s_batches_are_read_as_python_2_wrote_them(tmp_path: Path):
    assert np.array_equal(pickle.loads(python2(IMAGES), encoding="latin1")["data"], IMAGES)
    (tmp_path / "batch").write_bytes(python2(IMAGES))
    images, labels = cifar.read_part([tmp_path / "batch"])
    assert np.array_equal(images, IMAGES.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels.tolist() == [3, 1, 4, 1]
    (tmp_path / "meta").write_bytes(b"(dp1\nS'label_names'\np2\n(lp3\nS'cat'\np4\naS'dog'\np5\nas.")
    assert cifar.read_names(tmp_path / "meta", "label_names") == ["cat", "dog"]
    with pytest.raises(ValueError, match="has no list of names under 'fine_label_names'"):
        cifar.read_names(tmp_path / "meta", "fine_label_names")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"cos\nsystem\n(S'touch marker'\ntR.", "asks for (os|posix).system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "asks for builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "asks for numpy.load"),
        (b"(S'touch marker'\nios\nsystem\n.", "has the instruction INST"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged|expected|BYTEARRAY8"),
        (b"\x80\x02K\x01r" + struct.pack("<I", 2**31) + b".", "keeps a value under the number"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02u1}d}b.", "refused|must be a pickle"),
        (b"\x80\x02}.more", "goes on after its end, at byte 4"),
        (b"\x80\x02].", "holds list, not a mapping"),
        (b"\x80\x02}", "must be a pickle of plain values"),
        (b"", "must be a pickle of plain values"),
    ],
)
def test_what_is_no_batch_of_cifar_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, told: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(data)
    with at_most(16 * MIB), pytest.raises(ValueError, match=told):
        cifar.read_batch(tmp_path / "batch")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": np.zeros((4, 3072), np.float32)}, "array that is not of bytes"),
        ({"data": np.array([{}] * 4, object)}, "array that is not of bytes"),
        ({"data": IMAGES[:, :9]}, "has no images of 3 x 32 x 32"),
        ({"labels": [1, 2]}, "has no label for each image"),
        ({"labels": ["a"] * 4}, "labels that are no small numbers"),
    ],
)
def test_a_batch_without_images_or_labels_is_refused(tmp_path: Path, change: dict, told: str):
    (tmp_path / "batch").write_bytes(pickle.dumps(BATCH | change))
    with pytest.raises(ValueError, match=told):
        cifar.read_part([tmp_path / "batch"])


def test_a_pickle_among_cifar_s_files_is_not_run_though_its_sum_is_right(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kind = torchvision.datasets.CIFAR10
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    (folder / "batch").write_bytes(pickle.dumps(attack))
    monkeypatch.setattr(kind, "train_list", [["batch", None]])
    monkeypatch.setattr(kind, "test_list", [["batch", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "batch", "key": "names", "md5": None})
    with pytest.raises(FileNotFoundError, match=r"not whole.*asks for pathlib\.Path"):
        DATASETS["cifar10"](root=str(tmp_path), download=False)


PROGRAMS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n(out) (w) file closefile\n%%EOF\n",
    "ghostscript": b"%!\n(out) (w) file closefile showpage\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "xml bomb": b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY c "&b;&b;">]><svg>&c;</svg>',
    "pdf": b"%PDF-1.4\n1 0 obj<</OpenAction<</S/JavaScript>>>>endobj\n%%EOF",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_an_image_that_is_a_program_is_no_image_whatever_its_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(PROGRAMS[kind])
    with pytest.raises(BadImageError, match="no image file of a known kind"):
        decode(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_yaml_that_makes_objects_is_refused(attack: Attack, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{attack.marker}']")
    with pytest.raises(config.ConfigError, match="must be one of plain YAML"):
        config.load(tmp_path / "run.yaml", {})


# ---------------------------------------------------------------------- paths


def dataset(folder: Path, **changes) -> Path:
    """Write a ``dataset.json``, and return its folder."""
    said = {
        "name": "Small",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": [],
    }
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(said | changes))
    return folder


OUTSIDE = ["../../etc/passwd.nii", "/etc/passwd", "imagesTr/../../a.nii", "..\\a.nii", "a\0.nii"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_list_of_cases_names_no_file_outside_its_folder(tmp_path: Path, path: str):
    inside = "./labelsTr/a.nii.gz"
    for change in (
        {"training": [{"image": path, "label": inside}]},
        {"training": [{"image": inside, "label": path}]},
        {"test": [path]},
    ):
        with pytest.raises(config.ConfigError, match="must be a file in the folder of dataset"):
            read_task(dataset(tmp_path / "task", **change))


@pytest.mark.parametrize("name", ["../../home", "/etc", "a/b", "..", "a\nb", "n" * 300])
def test_a_task_s_name_stays_within_the_run_directory(tmp_path: Path, name: str):
    with pytest.raises(config.ConfigError, match="must be a plain name of letters"):
        read_task(dataset(tmp_path / "task", name=name))


class Folder(dict):
    """The files of a training by name, and the names that were asked for."""

    def read(self, name: str) -> bytes:
        try:
            return self[name]
        except KeyError:
            raise FileNotFoundError(name) from None


@pytest.mark.parametrize("name", ["../x.pt", "/etc/passwd", "a/../../x", "..", "", "p" * 300, 7])
def test_a_manifest_names_no_file_outside_its_folder(name: object):
    parts = [{"name": name, "bytes": 1, "sha256": "0"}]
    files = Folder({"step-1/manifest.json": json.dumps({"parts": parts}).encode()})
    with pytest.raises(checkpoint.Damaged, match="name of a part"):
        checkpoint.manifest(files, "step-1")


def test_only_torchvision_unpacks_archives_and_it_knows_their_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kind, tools = torchvision.datasets.CIFAR10, torchvision.datasets.utils
    archive = tmp_path / "datasets" / ".partial" / kind.filename

    def download(url: str, folder: str, filename: str, md5: str) -> None:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as file:
            member = tarfile.TarInfo("../../../outside")
            file.addfile(member)
        assert tools.check_integrity(str(archive))
        if not tools.check_integrity(str(archive), md5):
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(tools, "download_url", download)
    with pytest.raises(ConnectionError, match="could not be downloaded: File not found or corru"):
        DATASETS["cifar10"](root=str(tmp_path / "datasets"))
    assert [path.name for path in tmp_path.rglob("*")] == ["datasets", ".lock"]


# ---------------------------------------------------------------------- bombs


@pytest.mark.parametrize("read", [Policy.from_json, Genotype.from_json, Plan.from_json, parsed])
@pytest.mark.parametrize("text", [DEEP, DEEP.replace("[", '{"a":').replace("]", "}"), "9" * 5000])
def test_json_that_is_deep_or_has_endless_numbers_is_refused(read, text: str):
    with (
        at_most(16 * MIB),
        pytest.raises(ValueError, match=r"more than 32 levels|Exceeds the lim|JSON"),
    ):
        read(text)


def test_depth_is_counted_from_the_value():
    whole: object = 1
    for _ in range(DEEPEST):
        whole = [whole]
    assert parsed(json.dumps(whole)) == whole
    with pytest.raises(ValueError, match="more than 32 levels"):
        parsed(json.dumps({"a": whole}))


def test_deep_json_in_files_of_data_is_refused(tmp_path: Path):
    (tmp_path / "dataset.json").write_text(DEEP)
    with pytest.raises(config.ConfigError, match="more than 32 levels"):
        read_task(tmp_path)
    files = Folder({"step-1/manifest.json": DEEP.encode()})
    with pytest.raises(checkpoint.Damaged, match="more than 32 levels"):
        checkpoint.manifest(files, "step-1")
    write_shards(tmp_path / "shards", [(0, b"x" * 99, 0)], ["cat"])
    table = pq.read_table(tmp_path / "shards" / "00000.parquet")
    pq.write_table(table.replace_schema_metadata({"classes": DEEP}), tmp_path / "deep.parquet")
    with pytest.raises(ValueError, match=r"deep\.parquet: .*more than 32 levels"):
        parquet_records(str(tmp_path / "deep.parquet"))


def test_deep_json_in_a_run_directory_is_told_and_ends_nothing(tmp_path: Path):
    """A run directory that somebody sent is checked, compared, predicted with and gone on with."""
    run, good = LocalStorage(tmp_path), {"metrics": {}, "steps": 1, "seconds": 1.0}
    for name, text in {
        "run.json": json.dumps({"key": "k", "config": {}}),
        "results.json": DEEP,
        "ledger.jsonl": f"{DEEP}\n",
        "deep/result.json": DEEP,
        "good/result.json": json.dumps(good),
        "good/config.json": DEEP,
        "good/details.json": DEEP,
        "tracking/tracking.json": DEEP,
        "tracking/tracking.jsonl": f"{DEEP}\n" + '{"op": "spool"}\n',
        "task.json": DEEP,
    }.items():
        run.write(name, text.encode())
    found = {finding.where: finding.what for finding in check(run, under_way=False)}
    for name in ("results.json", "deep/result.json", "good/config.json", "good/details.json"):
        assert "more than 32 levels" in found[name], name
    for read in (
        lambda: config_of(run, run.below("good")),
        lambda: list(run.records("ledger.jsonl")),
        lambda: replay(tmp_path / "tracking"),
        lambda: import_module("predict").task_of(run, {}),
    ):
        with pytest.raises(ValueError, match="more than 32 levels"):
            read()
    assert run_in(tmp_path) is None
    spool = Spool(tmp_path / "tracking")
    assert spool.state() == {}
    assert list(spool.records()) == [{"op": "spool"}]
    spool.close()
    run.write("run.json", DEEP.encode())
    for refuse in (record_of, config_of):
        with pytest.raises(ValueError, match="more than 32 levels"):
            refuse(run)


def test_yaml_of_many_bytes_or_many_values_is_refused(tmp_path: Path):
    path = tmp_path / "run.yaml"
    with path.open("wb") as file:
        file.truncate(2**33)  # a file with a hole, which takes no room
    with at_most(16 * MIB), pytest.raises(config.ConfigError, match="has 8589934592 bytes, must"):
        config.load(path, {})
    laughs = "\n".join(
        ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    )
    path.write_text(laughs)
    with at_most(16 * MIB), pytest.raises(config.ConfigError, match="more than 10,000 values"):
        config.load(path, {})


def test_an_archive_that_inflates_is_no_checkpoint():
    whole, bomb = checkpoint.encode({"a": torch.zeros(1)}), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(bomb, "w", 8) as target:
        for name in source.namelist():
            more = bytes(200 * MIB) if "/data/" in name else b""
            target.writestr(name, source.read(name) + more)
    data = bomb.getvalue()
    assert len(data) < MIB
    with at_most(16 * MIB), pytest.raises(ValueError, match="bytes that would be 2097"):
        checkpoint.decode(data)


def test_an_archive_that_inflates_has_no_arrays(tmp_path: Path):
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(100 * MIB, np.uint8))
    assert len(file.getvalue()) < MIB
    with at_most(16 * MIB), pytest.raises(ValueError, match="is an archive of"):
        joined([file.getvalue()])
    (tmp_path / "key.npz").write_bytes(file.getvalue())
    with at_most(16 * MIB):
        assert ArrayFiles(str(tmp_path)).read("key") is None  # as any that is broken
    ArrayFiles(str(tmp_path)).write("key", {"a": np.arange(3)})
    assert ArrayFiles(str(tmp_path)).read("key")["a"].tolist() == [0, 1, 2]


HEADERS = {
    "absurd": ((30_000, 30_000, 30_000), 352),
    "large": ((900, 900, 900), 352),
    "far": ((4, 4, 4), 2**29),
    "before": ((4, 4, 4), -8),
    "nowhere": ((4, 4, 4), float("nan")),
}


def volume(path: Path, shape: tuple[int, ...], start: float, body: bytes = b"", kind=1) -> Path:
    """Write a file whose header says what does not follow."""
    header = nibabel.Nifti1Header() if kind == 1 else nibabel.Nifti2Header()
    header.set_data_dtype(np.float32)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["vox_offset"] = start if kind == 1 else (0 if start != start else int(start))
    header["magic"] = b"n+1" if kind == 1 else b"n+2"
    raw = header.binaryblock + body
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("which", HEADERS)
@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_volume_that_says_it_is_larger_than_it_can_be_takes_no_memory(
    tmp_path: Path, name: str, which: str, read
):
    path = volume(tmp_path / name, *HEADERS[which], body=bytes(4))
    with at_most(16 * MIB), pytest.raises(ValueError, match=r"a\.nii(\.gz)?: is truncated or dam"):
        read(path)


def test_a_volume_in_the_second_format_is_held_to_the_same(tmp_path: Path):
    path = volume(tmp_path / "a.nii.gz", (2**40, 3, 3), 544, bytes(4), kind=2)
    with at_most(16 * MIB), pytest.raises(ValueError, match="bytes of voxels follow after 544"):
        read_image(path)


def test_what_is_said_about_a_volume_is_not_inflated_without_end(tmp_path: Path):
    size = 2**27
    more = b"\1\0\0\0" + struct.pack("<ii", size, 6) + bytes(size - 8) + bytes(256)
    path = volume(tmp_path / "a.nii.gz", (4, 4, 4), 352 + size, more)
    assert path.stat().st_size < MIB
    with at_most(16 * MIB), pytest.raises(ValueError, match=r"of voxels follow after 1\.342"):
        read_image(path)


def test_pairs_and_other_packings_of_volumes_are_refused(tmp_path: Path):
    pair = nibabel.Nifti1Pair(np.zeros((2, 2, 2), np.int16), np.eye(4))
    nibabel.save(pair, tmp_path / "a.img")
    with pytest.raises(ValueError, match=r"a\.img: must be NIfTI in one file, \.nii or \.nii\.gz"):
        read_image(tmp_path / "a.img")


def png(width: int, height: int, data: bytes = b"", **chunks: bytes) -> bytes:
    """Return a PNG that says what size it has."""
    buffer = io.BytesIO()
    buffer.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(buffer, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    for name, content in chunks.items():
        PngImagePlugin.putchunk(buffer, name.encode(), content)
    PngImagePlugin.putchunk(buffer, b"IDAT", data)
    PngImagePlugin.putchunk(buffer, b"IEND", b"")
    return buffer.getvalue()


def test_an_image_of_more_pixels_than_any_is_refused_before_it_is_decoded(tmp_path: Path):
    for size in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (200_000_000, 1)):
        with at_most(16 * MIB), pytest.raises(BadImageError, match=r"pixels|Decompression|size"):
            decode(png(*size))
    data = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(data, "TIFF", compression="group4")
    assert len(data.getvalue()) < MIB
    with at_most(16 * MIB), pytest.raises(BadImageError, match="pixels"):
        decode(data.getvalue())


def test_texts_within_an_image_do_not_inflate_without_end():
    packed = b"Comment\0\0" + zlib.compress(bytes(64 * MIB), 9)
    with at_most(24 * MIB), pytest.raises(BadImageError, match="Decompressed data too large"):
        decode(png(2, 2, zlib.compress(bytes(14)), zTXt=packed))


def test_a_pipe_among_images_is_not_waited_for(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "a.png")
    (read,) = folder_records(tmp_path).read(np.array([0]))
    with pytest.raises(BadImageError, match="no plain file"):
        decode(read)
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"b\.json: is no plain file"):
        read_text(tmp_path / "b.json")
    os.mkfifo(tmp_path / "c.nii")
    with pytest.raises(ValueError, match=r"c\.nii: is no plain file"):
        read_image(tmp_path / "c.nii")


def ids_that_compress(path: Path, rows: int) -> Path:
    """Write so many rows in next to no bytes: ids that follow each other, labels all alike."""
    columns = {
        "id": pa.array(np.arange(rows)),
        "image": pa.array(np.repeat(b"x", rows), pa.binary()),
        "label": pa.array(np.zeros(rows, np.int64)),
    }
    encodings = {"id": "DELTA_BINARY_PACKED"}
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        use_dictionary=["image", "label"],
        column_encoding=encodings,
    )
    return path


@pytest.mark.parametrize("open_set", [parquet_records, lambda paths: ShardedImages(paths=paths)])
def test_more_rows_than_bytes_are_not_read(tmp_path: Path, open_set):
    path = ids_that_compress(tmp_path / "a.parquet", 300_000)
    assert path.stat().st_size < 100_000
    with (
        at_most(16 * MIB),
        pytest.raises(ValueError, match=r"a\.parquet: .* it has 300000 rows, in"),
    ):
        open_set(str(path))


@pytest.mark.parametrize("open_set", [parquet_records, lambda paths: ShardedImages(paths=paths)])
def test_a_gigantic_column_is_not_read(tmp_path: Path, open_set, monkeypatch: pytest.MonkeyPatch):
    assert parquet.MOST_BYTES == 2**31
    monkeypatch.setattr(parquet, "MOST_BYTES", 20 * MIB)
    write_shards(tmp_path, [(n, bytes(16 * MIB), 0) for n in range(2)], ["cat"])
    with (
        at_most(16 * MIB),
        pytest.raises(ValueError, match=r"has a row group of 3.* for it is read"),
    ):
        open_set(str(tmp_path))


@pytest.mark.parametrize("depth", [1, 40, 2000])
def test_nested_columns_are_refused_or_passed_over(tmp_path: Path, depth: int):
    kind: pa.DataType = pa.binary()
    for _ in range(depth):
        kind = pa.struct([("bytes", kind)])
    plain = {"id": pa.array([1]), "label": pa.array([0])}
    pq.write_table(pa.table(plain | {"image": pa.nulls(1, kind)}), tmp_path / "a.parquet")
    with at_most(64 * MIB), pytest.raises(ValueError, match=r"column 'image' is struct|flatb"):
        parquet_records(str(tmp_path / "a.parquet"))


def test_a_vocabulary_of_a_hostile_size_is_refused(tmp_path: Path):
    path = tmp_path / "vocab.txt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with at_most(40 * MIB), pytest.raises(ValueError, match="more than 16777216 bytes"):
        WordPiece.read(str(path))
    path.write_bytes(b"\xff\xfe[PAD]")
    with pytest.raises(ValueError, match=r"vocab\.txt: is no text"):
        WordPiece.read(str(path))


def test_a_caption_that_is_a_book_is_refused(tmp_path: Path):
    picture = png_of(np.zeros((3, 8, 8), np.uint8))
    rows = [(n, picture, 0, "a dog" if n else "x" * (LONGEST + 1)) for n in range(2)]
    write_shards(tmp_path, rows, ["cat"])
    with pytest.raises(ValueError, match=r"row 0: has a caption of 20001 signs, must be at most"):
        captions_of(parquet_records(str(tmp_path)))
    assert captions_of(parquet_records(str(tmp_path)).subset(np.array([1]))) == ("a dog",)


# ---------------------------------------------------------------------- names


def test_the_measure_of_memory_sees_what_is_used():
    with pytest.raises(AssertionError), at_most(30 * MIB):
        assert len(b"x" * (60 * MIB)) == 60 * MIB
    with at_most(30 * MIB):
        assert len(b"x" * MIB) == MIB


def test_what_steers_a_terminal_is_written_out():
    text = "a\x1b[2J\x9b1m\x07\r\x00\u202eb\tc\nd"
    assert printable(text) == "a\\x1b[2J\\x9b1m\\x07\\x0d\\x00\\u202eb\tc\nd"
    assert printable("Müller 日本 🙂") == "Müller 日本 🙂"
    assert redacted("http://u:p@h/a\x1b[2J") == "http://***@h/a\\x1b[2J"
    assert "\x1b" not in bullets(["a\x1b[2J"])


STRANGE = ["a\x1b[2Jb", "two\nlines", "n" * 300, "right\u202eleft"]


@pytest.mark.parametrize("name", STRANGE)
def test_classes_and_labels_have_names_that_a_table_can_have(tmp_path: Path, name: str):
    write_shards(tmp_path, [(0, b"x" * 99, 0)], [name])
    with pytest.raises(ValueError, match="names that do not print, or of more than 200") as caught:
        parquet_records(str(tmp_path))
    assert printable(str(caught.value)) == str(caught.value)
    for change in (
        {"labels": {"0": "background", "1": name}},
        {"modality": {"0": name}},
        {"test": [f"imagesTs/{name}.nii.gz"]},
    ):
        with pytest.raises(
            config.ConfigError, match="signs that print and of at most 200"
        ) as caught:
            read_task(dataset(tmp_path / "task", **change))
        assert printable(str(caught.value)) == str(caught.value)
