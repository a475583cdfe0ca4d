"""The table of data sets: a name, and the function that returns its training and test images.

Each takes its own arguments and those of :class:`raykb.data.options.Options`, all by keyword;
``inspect.signature`` of an entry lists them, so a config's ``data`` section is checked against it.

The embedded sample is a real, balanced part of Fashion-MNIST (Zalando SE, MIT; see
``samples/LICENSE``). It was made from the original IDX files by ::

    python pipelines/prepare_data.py fashion_mnist sample --root /usr/share/datasets/fashion-mnist \
        --train-size 10000 --test-size 2000 --subset-seed 0

and is ``sample/train/00000.parquet`` and ``sample/test/00000.parquet``. An image's id is its
position in the IDX file.

The other one are the emoji of Google's Noto (Apache-2.0) and Twitter's Twemoji (CC-BY 4.0; see
``samples/LICENSE.emoji`` for both), as the npm packages emoji-datasource-* 16.0.0 have them::

    npm install --prefix npm emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    python pipelines/prepare_data.py emoji sample --root npm/node_modules --hold-out picture \
        --image-size 32
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raykb.data.cifar import read_names, read_part
from raykb.data.download import fetch
from raykb.data.folder import folder_records
from raykb.data.idx import idx_records
from raykb.data.images import ImageSet
from raykb.data.loading import load
from raykb.data.options import Options
from raykb.data.parquet import parquet_records
from raykb.data.records import Records, array_records
from raykb.data.splits import stratified_shuffle_splits
from raykb.later import Later

torchvision = Later("torchvision")

__all__ = ["DATASETS", "SOURCES", "ImageSet"]

Pair = tuple[Records, Records]
"""Training and test records."""

_SAMPLES = Path(__file__).parent / "samples"
_FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def fashion_mnist_sample() -> Pair:
    """Fashion-MNIST, 10000 training and 2000 test images that come with this package."""
    train, test = (
        parquet_records(str(_SAMPLES / f"fashion_mnist_{part}.parquet"))
        for part in ("train", "test")
    )
    return train, test


def emoji_sample() -> Pair:
    """Emoji of Noto and Twemoji, 32 x 32, 8 categories, with captions, that come with this package.

    2945 pictures to train on and 327 to test on: of the emoji of these, the other house's picture
    is in training.
    """
    train, test = (
        parquet_records(str(_SAMPLES / f"emoji_{part}.parquet")) for part in ("train", "test")
    )
    return train, test


def parquet(
    *, train: str | list[str], test: str | list[str], class_names: list[str] | None = None
) -> Pair:
    """Images in Parquet files: ``id``, ``image``, ``label`` (see ``raykb/data/parquet.py``).

    Args:
        train: files of the training set, or folders of shards.
        test: the same of the test set.
        class_names: names of the classes, if the files do not name them.
    """
    records = parquet_records(train, class_names)
    return records, parquet_records(test, class_names or records.classes)


def idx(*, root: str, class_names: list[str] | None = None) -> Pair:
    """MNIST and its kin as IDX files: ``train-images-idx3-ubyte`` and so on, plain or gzipped.

    Args:
        root: folder of the four files.
        class_names: names of the classes; by default they are numbered.
    """
    train = idx_records(Path(root), "train", class_names)
    return train, idx_records(Path(root), "t10k", train.classes)


def fashion_mnist(*, root: str = "datasets", download: bool = True) -> Pair:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 60000 + 10000 grey 28 x 28, 10 classes.

    Args:
        root: torchvision's folder of data sets, or the folder of the four IDX files.
        download: get them if they are not there.
    """

    def open_set(folder: Path, download: bool) -> Pair:
        if download:
            torchvision.datasets.FashionMNIST(folder, download=True)
        raw = folder / "FashionMNIST" / "raw"
        return idx(root=str(raw if raw.is_dir() else folder), class_names=_FASHION)

    return fetch(open_set, Path(root), name="fashion_mnist", download=download)


def cifar10(*, root: str = "datasets", download: bool = True) -> Pair:
    """CIFAR-10 (Krizhevsky, 2009): 50000 + 10000 colour 32 x 32, 10 classes.

    Args:
        root: torchvision's folder of data sets.
        download: get it if it is not there.
    """
    return _cifar("CIFAR10", "cifar10", root, download)


def cifar100(*, root: str = "datasets", download: bool = True) -> Pair:
    """CIFAR-100 (Krizhevsky, 2009): 50000 + 10000 colour 32 x 32, 100 classes.

    Args:
        root: torchvision's folder of data sets.
        download: get it if it is not there.
    """
    return _cifar("CIFAR100", "cifar100", root, download)


def _cifar(kind: str, name: str, root: str, download: bool) -> Pair:
    def open_set(folder: Path, download: bool) -> Pair:
        known, tools = getattr(torchvision.datasets, kind), torchvision.datasets.utils
        if download:
            tools.download_and_extract_archive(
                known.url, str(folder), filename=known.filename, md5=known.tgz_md5
            )
        base, meta = folder / known.base_folder, known.meta
        sums = dict([*known.train_list, *known.test_list, (meta["filename"], meta["md5"])])
        for file, md5 in sums.items():
            if not tools.check_integrity(str(base / file), md5):
                raise ValueError(f"{base / file}: is missing, or not what its authors published")
        classes = read_names(base / meta["filename"], meta["key"])
        train, test = (
            array_records(*read_part([base / file for file, _ in part]), classes, name)
            for part in (known.train_list, known.test_list)
        )
        return train, test

    return fetch(open_set, Path(root), name=name, download=download)


def svhn(*, root: str = "datasets", download: bool = True) -> Pair:
    """SVHN (Netzer et al., 2011), cropped digits: 73257 + 26032 colour 32 x 32, 10 classes.

    Args:
        root: torchvision's folder of data sets.
        download: get it if it is not there.
    """

    def open_set(folder: Path, download: bool) -> Pair:
        train, test = (
            array_records(part.data.transpose(0, 2, 3, 1), part.labels, list("0123456789"), "svhn")
            for part in (
                torchvision.datasets.SVHN(folder, split=split, download=download)
                for split in ("train", "test")
            )
        )
        return train, test

    return fetch(open_set, Path(root), name="svhn", download=download)


def image_folder(*, root: str, test_fraction: float | None = None, split_seed: int = 0) -> Pair:
    """Image files, one folder per class: ``root/train/<class>/<image>`` and ``root/test/...``.

    Args:
        root: folder of ``train`` and of ``test`` or ``val``; or, with ``test_fraction``, the
            folder of the classes.
        test_fraction: share of the images to hold out as the test set.
        split_seed: of the draw of that share.
    """
    if test_fraction is not None:
        records = folder_records(Path(root))
        splits = stratified_shuffle_splits(
            records.labels, splits=1, test_fraction=test_fraction, seed=split_seed
        )
        train, test = (records.subset(np.sort(rows)) for rows in splits[0])
        return train, test
    folders = [Path(root) / part for part in ("train", "test", "val")]
    present = [folder for folder in folders if folder.is_dir()]
    if folders[0] not in present or len(present) < 2:
        raise FileNotFoundError(
            f"root={root!r}: must hold the folders 'train' and 'test' (or 'val'); for a folder of "
            "classes only, set test_fraction to the share to hold out"
        )
    train, test = (folder_records(folder) for folder in present[:2])
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"{present[0]} and {present[1]} must hold the same classes; only one of them has "
            f"{', '.join(differing[:10])}"
        )
    return train, test


SOURCES: dict[str, Callable[..., Pair]] = {
    "fashion_mnist_sample": fashion_mnist_sample,
    "emoji_sample": emoji_sample,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "parquet": parquet,
    "idx": idx,
    "image_folder": image_folder,
}
"""Data sets by name, not decoded yet."""


def _data_set(source: Callable[..., Pair]) -> Callable[..., tuple[ImageSet, ImageSet]]:
    """Return the function that opens ``source``, selects and decodes as the options say."""
    signatures = [inspect.signature(source), inspect.signature(Options)]
    own, common = (signature.parameters for signature in signatures)

    def images(**arguments: Any) -> tuple[ImageSet, ImageSet]:
        *records, options = _opened(source, arguments)
        train, test = (load(part, options) for part in records)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise ValueError(
                f"{source.__name__}: training images have the shape {train.images.shape[1:]} and "
                f"test images {test.images.shape[1:]}; set image_size and channels"
            )
        return train, test

    images.__name__ = images.__qualname__ = source.__name__
    images.__doc__ = source.__doc__
    parameters = [*own.values(), *common.values()]
    images.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    images.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return images


DATASETS: dict[str, Callable[..., tuple[ImageSet, ImageSet]]] = {
    name: _data_set(source) for name, source in SOURCES.items()
}


def open_records(name: str, **arguments: Any) -> tuple[Records, Records, Options]:
    """Return training and test records that are wanted, not decoded, and how to decode them.

    Args:
        name: of ``SOURCES``.
        arguments: as the function of that name in ``DATASETS`` takes them.
    """
    return _opened(SOURCES[name], arguments)


def _opened(
    source: Callable[..., Pair], arguments: dict[str, Any]
) -> tuple[Records, Records, Options]:
    common = inspect.signature(Options).parameters
    options = Options(**{name: arguments.pop(name) for name in common if name in arguments})
    train, test = options.select(*source(**arguments))
    return train, test, options
