import gzip
import hashlib
import inspect
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

from raykb.data import decoding
from raykb.data.datasets import DATASETS, SOURCES
from raykb.data.folder import image_files
from raykb.data.options import Options
from raykb.data.parquet import write_shards
from raykb.data.splits import stratified_subset

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write_images(folder: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8)) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(noise(*size, 3)).save(folder / name / f"{number}.png")


# The table


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_signature_lists_every_argument_with_its_type(name: str):
    parameters = inspect.signature(DATASETS[name]).parameters
    expected = inspect.signature(SOURCES[name]).parameters | inspect.signature(Options).parameters
    assert dict(parameters) == dict(expected)
    assert DATASETS[name].__annotations__ == {k: p.annotation for k, p in parameters.items()}
    for parameter in parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation is not inspect.Parameter.empty


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="rot"):
        DATASETS["fashion_mnist"](rot="datasets")


# The embedded sample and the options


def test_the_sample_is_balanced_and_named():
    train, test = DATASETS["fashion_mnist_sample"]()
    assert train.images.shape == (10000, 1, 28, 28)
    assert test.images.shape == (2000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [1000] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert train.classes == test.classes
    assert train.classes[9] == "Ankle boot"
    assert train.images.flags.c_contiguous
    assert train.skipped == ()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_sample_is_a_part_of_the_original_by_id():
    whole = DATASETS["fashion_mnist"](root=str(DEBIAN), download=False)
    assert [len(part) for part in whole] == [60000, 10000]
    for part, original in zip(DATASETS["fashion_mnist_sample"](), whole, strict=True):
        assert np.array_equal(part.images, original.images[part.ids])
        assert np.array_equal(part.labels, original.labels[part.ids])


def test_sizes_draw_stratified_and_by_seed():
    whole, _ = DATASETS["fashion_mnist_sample"]()
    train, test = DATASETS["fashion_mnist_sample"](train_size=4000, test_size=50, subset_seed=3)
    drawn = stratified_subset(whole.labels, 4000, seed=3)
    assert np.array_equal(train.ids, whole.ids[drawn])
    assert np.array_equal(train.images, whole.images[drawn])
    assert np.bincount(test.labels).tolist() == [5] * 10
    other, _ = DATASETS["fashion_mnist_sample"](train_size=4000, test_size=50)
    assert not np.array_equal(train.ids, other.ids)


def test_only_rows_that_were_drawn_are_decoded(monkeypatch: pytest.MonkeyPatch):
    opened = []
    monkeypatch.setattr(
        decoding, "_open", lambda data: opened.append(data) or Image.new("L", (28, 28))
    )
    DATASETS["fashion_mnist_sample"](train_size=30, test_size=20)
    assert len(opened) == 50


def test_classes_are_kept_by_name_and_numbered_in_the_order_given():
    whole, _ = DATASETS["fashion_mnist_sample"]()
    train, test = DATASETS["fashion_mnist_sample"](classes=["Bag", "Trouser"], train_size=100)
    assert train.classes == test.classes == ("Bag", "Trouser")
    assert np.bincount(train.labels).tolist() == [10, 10]  # drawn from all classes, then kept
    names = dict(zip(whole.ids.tolist(), whole.labels.tolist(), strict=True))
    assert all(
        whole.classes[names[i]] == train.classes[label]
        for i, label in zip(train.ids.tolist(), train.labels.tolist(), strict=True)
    )


def test_a_number_of_classes_is_drawn_by_seed_for_both_parts():
    drawn = set()
    for seed in range(4):
        train, test = DATASETS["fashion_mnist_sample"](num_classes=3, subset_seed=seed)
        assert len(train.classes) == 3
        assert train.classes == test.classes
        assert np.bincount(test.labels).tolist() == [200] * 3
        drawn.add(train.classes)
    assert len(drawn) > 1


def test_size_and_channels_are_made_to_order():
    train, test = DATASETS["fashion_mnist_sample"](
        image_size=32, channels=3, train_size=20, test_size=20
    )
    assert train.images.shape == test.images.shape == (20, 3, 32, 32)
    assert np.array_equal(train.images[:, 0], train.images[:, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0, must be a positive integer"),
        ({"train_size": 0.5}, "train_size=0.5, must be a positive integer"),
        ({"channels": 2}, "channels=2, must be 1 or 3"),
        ({"subset_seed": -1}, "subset_seed=-1, must not be negative"),
        ({"on_bad_image": "ignore"}, "on_bad_image='ignore', must be 'raise' or 'skip'"),
        ({"channels": 4, "test_size": -1}, "(?s)test_size=-1.*channels=4"),
        ({"classes": ["Bag"], "num_classes": 1}, "only one can be given"),
        ({"classes": ["Bag", "Hat"]}, r"\['Hat'\] unknown. The set has \['T-shirt/top'"),
        ({"classes": ["Bag", "Bag"]}, "each once"),
        ({"classes": []}, "must name some"),
        ({"num_classes": 11}, "num_classes=11, but the set has 10 classes"),
        ({"train_size": 10001}, "train_size: size=10001.*or all 10000"),
        ({"test_size": 5}, "test_size: size=5"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DATASETS["fashion_mnist_sample"](**options)


# Parquet, and what is done about bad images


def parquet_of(tmp_path: Path, bad: tuple[int, ...] = (), total: int = 12) -> dict[str, str]:
    for part in ("train", "test"):
        rows = [
            (i, b"broken" if i in bad else decoding.encode_png(noise(3, 5, 4)), i % 2)
            for i in range(total)
        ]
        write_shards(tmp_path / part, rows, ["a", "b"])
    return {part: str(tmp_path / part) for part in ("train", "test")}


def test_parquet_is_read_from_folders_and_lists(tmp_path: Path):
    paths = parquet_of(tmp_path)
    train, test = DATASETS["parquet"](**paths)
    assert train.images.shape == (12, 3, 5, 4)
    assert train.classes == test.classes == ("a", "b")
    again, _ = DATASETS["parquet"](
        train=[f"{paths['train']}/00000.parquet"], test=paths["test"], class_names=["a", "b"]
    )
    assert np.array_equal(again.images, train.images)


def test_training_and_test_shards_must_name_the_same_classes(tmp_path: Path):
    paths = parquet_of(tmp_path)
    write_shards(tmp_path / "other", [(0, b"", 0)], ["b", "a"])
    with pytest.raises(ValueError, match=r"(?s)must be the same.*'a', 'b'.*other.*'b', 'a'"):
        DATASETS["parquet"](train=paths["train"], test=str(tmp_path / "other"))


def test_bad_images_are_named_and_counted(tmp_path: Path):
    with pytest.raises(ValueError, match=r"2 of 12 images.*\n.*00000\.parquet, row 3: .*\n.*row 7"):
        DATASETS["parquet"](**parquet_of(tmp_path, bad=(3, 7)))


def test_of_many_bad_images_the_first_ten_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"11 of 30 images(?s:.*)row 9: .*\n  - \.\.\.\n"):
        DATASETS["parquet"](**parquet_of(tmp_path, bad=tuple(range(11)), total=30))


def test_bad_images_are_skipped_on_request_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train, _ = DATASETS["parquet"](**parquet_of(tmp_path, bad=(3, 7)), on_bad_image="skip")
    assert train.ids.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert (train.labels == train.ids % 2).all()
    assert len(train.skipped) == 2
    assert "row 7" in train.skipped[1]
    assert [r.getMessage().count("2 of 12 images") for r in caplog.records] == [1, 1]


def test_nothing_but_bad_images_is_an_error_even_so(tmp_path: Path):
    with pytest.raises(ValueError, match=r"12 of 12 (?s:.*)None is left"):
        DATASETS["parquet"](**parquet_of(tmp_path, bad=tuple(range(12))), on_bad_image="skip")


# Folders of images


def test_a_folder_of_images_is_read_by_class(tmp_path: Path):
    write_images(tmp_path / "train", {"dog": 3, "cat": 2})
    write_images(tmp_path / "val", {"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    train, test = DATASETS["image_folder"](root=str(tmp_path))
    assert train.classes == ("cat", "dog")
    assert sorted(zip(train.ids.tolist(), train.labels.tolist(), strict=True)) == [
        (0, 0), (1, 0), (2, 1), (3, 1), (4, 1),
    ]  # fmt: skip
    assert len(test) == 2
    first = np.asarray(Image.open(tmp_path / "train" / "cat" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(train.images[train.ids.tolist().index(0)], first)


def test_hidden_images_of_a_folder_are_passed_over(tmp_path: Path):
    write_images(tmp_path, {".at": 2, ".at/.thumbnails": 1})
    folder = tmp_path / ".at"  # what the user names is not hidden
    (folder / "._0.png").write_bytes(b"no image")
    assert [path.name for path in image_files(folder)] == ["0.png", "1.png"]


def test_rows_of_a_folder_are_mixed(tmp_path: Path):
    write_images(tmp_path, {"a": 20, "b": 20})
    train, _ = DATASETS["image_folder"](root=str(tmp_path), test_fraction=0.1)
    assert 3 <= train.labels[:18].sum() <= 15  # sorted, they were all of class a


def test_a_share_of_a_single_folder_is_held_out_by_seed(tmp_path: Path):
    write_images(tmp_path, {"a": 10, "b": 20})
    train, test = DATASETS["image_folder"](root=str(tmp_path), test_fraction=0.3)
    assert np.bincount(train.labels).tolist() == [7, 14]
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    _, other = DATASETS["image_folder"](root=str(tmp_path), test_fraction=0.3, split_seed=1)
    assert set(test.ids.tolist()) != set(other.ids.tolist())


def test_mixed_sizes_and_modes_need_image_size_and_become_one(tmp_path: Path):
    write_images(tmp_path / "train", {"a": 2}, (8, 6))
    write_images(tmp_path / "train", {"b": 2}, (5, 9))
    write_images(tmp_path / "test", {"a": 1, "b": 1}, (7, 7))
    Image.fromarray(noise(4, 4)).save(tmp_path / "train" / "a" / "grey.jpg")
    with pytest.raises(ValueError, match=r"(?s)3 sizes.*8 x 6: 2 images, as .*Set image_size"):
        DATASETS["image_folder"](root=str(tmp_path))
    train, test = DATASETS["image_folder"](root=str(tmp_path), image_size=6)
    assert train.images.shape == (5, 3, 6, 6)
    assert test.images.shape == (2, 3, 6, 6)


def test_training_and_test_images_must_have_one_shape(tmp_path: Path):
    write_images(tmp_path / "train", {"a": 2}, (8, 8))
    write_images(tmp_path / "test", {"a": 2}, (9, 9))
    with pytest.raises(
        ValueError, match=r"\(3, 8, 8\) and test images \(3, 9, 9\); set image_size"
    ):
        DATASETS["image_folder"](root=str(tmp_path))


def test_folders_that_are_missing_empty_or_at_odds_are_named(tmp_path: Path):
    def load(**options: Any) -> None:
        DATASETS["image_folder"](root=str(tmp_path), **options)

    with pytest.raises(FileNotFoundError, match="must hold the folders 'train' and 'test'"):
        load()
    with pytest.raises(FileNotFoundError, match="it, nor any folder of a class"):
        load(test_fraction=0.5)
    write_images(tmp_path / "train", {"a": 1, "b": 1})
    with pytest.raises(FileNotFoundError, match="test_fraction"):
        load()
    write_images(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(ValueError, match="same classes; only one of them has b, c"):
        load()
    (tmp_path / "test" / "d").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no images in .*test/d; must hold <class>/<image>"
    ):
        load()
    with pytest.raises(FileNotFoundError, match="nowhere: must be a folder"):
        DATASETS["image_folder"](root="nowhere", test_fraction=0.5)


# Sets that torchvision downloads, from files of their own formats


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, kind: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    images = noise(20, 3, 32, 32)
    for part, rows in (("train", images[:16]), ("test", images[16:])):
        content = {"data": rows.reshape(len(rows), -1), key: [i % 2 for i in range(len(rows))]}
        (folder / part).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(kind, f"{part}_list", [[part, md5(folder / part)]])
    (folder / "meta").write_bytes(pickle.dumps({"names": ["cat", "dog"]}))
    meta = {"filename": "meta", "key": "names", "md5": md5(folder / "meta")}
    monkeypatch.setattr(kind, "meta", meta)
    return images


@pytest.mark.parametrize(
    ("name", "kind", "key"),
    [
        ("cifar10", torchvision.datasets.CIFAR10, "labels"),
        ("cifar100", torchvision.datasets.CIFAR100, "fine_labels"),
    ],
)
def test_cifar_is_read_and_a_damaged_copy_is_not(
    name: str, kind: Any, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = write_cifar(tmp_path, kind, key, monkeypatch)
    train, test = DATASETS[name](root=str(tmp_path))
    assert np.array_equal(np.concatenate([train.images, test.images]), images)
    assert train.labels.tolist() == [0, 1] * 8
    assert train.classes == ("cat", "dog")
    with (tmp_path / kind.base_folder / "train").open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileNotFoundError, match=f"{name} is not, or not whole"):
        DATASETS[name](root=str(tmp_path), download=False)


def test_svhn_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, labels = noise(32, 32, 3, 20), np.array([[1 + i % 10] for i in range(20)])
    for part in ("train", "test"):
        path = tmp_path / f"{part}.mat"
        scipy.io.savemat(path, {"X": images, "y": labels})
        entry = ["", path.name, md5(path)]
        monkeypatch.setitem(torchvision.datasets.SVHN.split_list, part, entry)
    train, test = DATASETS["svhn"](root=str(tmp_path), download=False)
    assert np.array_equal(train.images, images.transpose(3, 2, 0, 1))
    assert test.labels.tolist() == [*range(1, 10), 0] * 2  # the file says 10 for the digit 0


def write_idx(folder: Path, total: int = 10) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = noise(total, 28, 28), np.arange(total, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        for array, name in ((images, f"{part}-images-idx3"), (labels, f"{part}-labels-idx1")):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            content = gzip.compress(header + array.tobytes())
            (folder / f"{name}-ubyte.gz").write_bytes(content)
    return images[:, None]


@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_where_debian_and_torchvision_keep_it(tmp_path: Path, folder: str):
    images = write_idx(tmp_path / folder)
    train, test = DATASETS["fashion_mnist"](root=str(tmp_path), download=False)
    assert np.array_equal(train.images, images)
    assert test.classes[0] == "T-shirt/top"


def test_idx_files_are_read_with_class_names(tmp_path: Path):
    images = write_idx(tmp_path, total=4)
    train, _ = DATASETS["idx"](root=str(tmp_path))
    assert np.array_equal(train.images, images)
    assert train.classes == ("0", "1", "2", "3")
    _, test = DATASETS["idx"](root=str(tmp_path), class_names=["a", "b", "c", "d"])
    assert test.classes == ("a", "b", "c", "d")


def test_a_download_goes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(folder: Path, *, download: bool) -> None:
        write_idx(Path(folder) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    train, _ = DATASETS["fashion_mnist"](root=str(tmp_path))
    assert len(train) == 10
    assert (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz").is_file()


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_without_a_network_the_alternatives_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(ConnectionError, match=rf"(?s){name} is not.*--smoke.*prepare_data\.py"):
        DATASETS[name](root=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
