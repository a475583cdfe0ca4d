"""The table of data sets: a name, and the function that returns its training and test images.

Each takes its own arguments and those of :class:`raykb.data.records.Options`, all by keyword;
``inspect.signature`` of an entry lists them, so a config's ``data`` section is checked against it.

The embedded sample is a real, balanced part of Fashion-MNIST (Zalando SE, MIT; see
``samples/LICENSE``). It was made from the original IDX files by ::

    python pipelines/prepare_data.py fashion_mnist sample --root /usr/share/datasets/fashion-mnist \
        --train-size 10000 --test-size 2000 --subset-seed 0

and is ``sample/train/00000.parquet`` and ``sample/test/00000.parquet``. An image's id is its
position in the IDX file.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raykb.data.idx import idx_records
from raykb.data.images import ImageSet
from raykb.data.parquet import parquet_records
from raykb.data.records import Options, Records, load

__all__ = ["DATASETS", "SOURCES", "ImageSet"]

Pair = tuple[Records, Records]
"""Training and test records."""

_SAMPLES = Path(__file__).parent / "samples"
_FASHION = (
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
)


def fashion_mnist_sample() -> Pair:
    """Fashion-MNIST, 10000 training and 2000 test images that come with this package."""
    train, test = (
        parquet_records(str(_SAMPLES / f"fashion_mnist_{part}.parquet"))
        for part in ("train", "test")
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
        root: folder of the four IDX files, or torchvision's folder of data sets.
        download: get the files if they are not there.
    """
    folders = [Path(root), Path(root) / "FashionMNIST" / "raw"]
    train, test = (idx_records(folders[0], part, _FASHION) for part in ("train", "t10k"))
    return train, test


SOURCES: dict[str, Callable[..., Pair]] = {
    source.__name__: source for source in (fashion_mnist_sample, fashion_mnist, parquet, idx)
}


def _data_set(source: Callable[..., Pair]) -> Callable[..., tuple[ImageSet, ImageSet]]:
    """Return the function that opens ``source``, selects and decodes as the options say."""
    signatures = [inspect.signature(source), inspect.signature(Options)]
    own, common = (signature.parameters for signature in signatures)

    def images(**arguments: Any) -> tuple[ImageSet, ImageSet]:
        options = Options(**{name: arguments.pop(name) for name in common if name in arguments})
        train, test = options.select(*source(**arguments))
        return load(train, options), load(test, options)

    images.__name__ = images.__qualname__ = source.__name__
    images.__doc__ = source.__doc__
    images.__signature__ = inspect.Signature([*own.values(), *common.values()])  # type: ignore[attr-defined]
    return images


DATASETS: dict[str, Callable[..., tuple[ImageSet, ImageSet]]] = {
    name: _data_set(source) for name, source in SOURCES.items()
}
