"""Unlabelled images for a training: what any step sees, as a function of (seed, step).

:class:`Unlabelled` makes the weak and strong views of any step, anywhere. A stream is what has
this done beside the training: :class:`raykb.data.loader.LoaderStream` by the processes of a torch
DataLoader, ``raykb.runtime.streams.RayStream`` by tasks on a cluster. What comes out is the same.

A broken image is replaced by another of its shard, drawn by its id: the same in every epoch, under
the broken one's id. So positions never move, and no id is seen twice in an epoch.
"""

import functools
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from raykb.data.decoding import BadImageError, decode, decode_all
from raykb.data.order import Order, Shard, find_shards
from raykb.data.parquet import named_errors
from raykb.data.strong import PairOfViews
from raykb.engine.arguments import above, among, misfits, or_none, refuse
from raykb.engine.seeding import keyed_uniform, stream_seed

logger = logging.getLogger(__name__)

_SAMPLE = Path(__file__).parent / "samples" / "fashion_mnist_train.parquet"
_DRAWS = 32  # of another image for a broken one
_TRIED = 8  # shards, for one image that can be decoded
_CACHE_BYTES = 96 * 2**20
_SHOWN = 10  # messages about broken images
CPU = torch.device("cpu")

Tell = Callable[[int, str], None]
"""``tell(rank, problem)``: what is wrong with an image, which is named."""


class Views(NamedTuple):
    """What a rank sees of the unlabelled images at a step."""

    weak: Tensor  # (N, C, H, W) uint8
    strong: Tensor  # (N, C, H, W) uint8
    ids: Tensor  # (N,) int64


class Images(NamedTuple):
    """Decoded images of a step."""

    images: np.ndarray  # (N, C, H, W) uint8
    ids: np.ndarray  # (N,) int64
    problems: list[str]  # of each image: why it stands for a broken one, or ""


class Stream(Protocol):
    """What a training takes unlabelled images from; can be pickled until batches are asked for."""

    @property
    def count(self) -> int:
        """Unlabelled images that there are."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the images."""

    def ids(self) -> np.ndarray:
        """Return the ids of all images, (count,) int64, in file order."""

    def batches(
        self,
        start: int,
        rank: int = 0,
        size: int = 1,
        device: torch.device = CPU,
        stop: int | None = None,
    ) -> Iterator[Views]:
        """Yield a rank's views of steps start, start + 1, ….

        Args:
            start: steps that are done.
            rank: which of the ranks that share each step's batch.
            size: their number.
            device: where views are made if the stream leaves them to the training; else they
                come on the CPU.
            stop: steps in all, so that nothing is made that nobody will see; None for no end.
        """

    def figures(self) -> dict[str, float]:
        """Return figures of the stream, as ``stream/…``; cheap enough for every step."""

    def close(self) -> None:
        """End what :meth:`batches` has started."""


@dataclass(kw_only=True, eq=False)
class Unlabelled:
    """Unlabelled images in Parquet files, in the order and the views of a training.

    What is seen at a step is a function of the settings, the ids and how these are cut into shards;
    ``digest`` stands for the latter two.

    Args:
        batch_size: images of each step, over all ranks.
        seed: of order and views.
        view: makes the two views.
        paths: files or folders of Parquet shards with ``id`` and ``image``, at the same place on
            every host; None for the training images of the embedded sample.
        image_size: scale to cover a square of this many pixels and cut out its centre; None if all
            images have one size.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated); None for what the first
            image has.
        on_bad_image: ``replace`` one that cannot be decoded, and say so; or ``raise``.
        mix_shards: shards whose rows are mixed with each other (see :class:`Order`).
        views: where views are made: by the ``workers`` that decode, or by the ``trainer`` on its
            device.
        timeout_s: seconds that a training waits for a batch before it gives up.
        tell: is told of each broken image that comes, once: the rank, and file, row and reason.

    Raises:
        FileNotFoundError: a path does not exist or holds no Parquet file.
        ValueError: a file is not of this layout, ids are missing or occur twice, or there are
            fewer images than a batch has.
    """

    batch_size: int
    seed: int
    view: PairOfViews
    paths: str | list[str] | None = None
    image_size: int | None = None
    channels: int | None = None
    on_bad_image: Literal["replace", "raise"] = "replace"
    mix_shards: int = 1
    views: Literal["workers", "trainer"] = "workers"
    timeout_s: float = 120.0
    tell: Tell | None = None

    def __post_init__(self) -> None:
        choices = {
            "channels": or_none(among(1, 3)),
            "on_bad_image": among("replace", "raise"),
            "views": among("workers", "trainer"),
        }
        refuse(misfits(self, **choices, image_size=or_none(above(0)), timeout_s=above(0)))
        shards, ids = find_shards(str(_SAMPLE) if self.paths is None else self.paths)
        self.order = Order(
            shards, batch_size=self.batch_size, seed=self.seed, mix_shards=self.mix_shards
        )
        self.shape = self._first_shape()
        counts = np.array([shard.count for shard in shards])
        self.digest = hashlib.sha256(counts.tobytes() + ids.tobytes()).hexdigest()

    @property
    def count(self) -> int:
        """Unlabelled images that there are."""
        return self.order.count

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the images."""
        return self.order.steps_per_epoch

    def ids(self) -> np.ndarray:
        """Return the ids of all images, in file order."""
        return find_shards(self.files)[1]

    @property
    def files(self) -> list[str]:
        """Absolute paths of the files that have images, in their order."""
        return list(dict.fromkeys(shard.path for shard in self.order.shards))

    def images(self, step: int, rank: int = 0, size: int = 1) -> Images:
        """Return a rank's decoded images of a step.

        Raises:
            ValueError: an image is broken and must not be replaced or cannot be, or is of another
                size than the others; file and row are named.
        """
        numbers, rows = self.order.rows(step, rank, size)
        out = np.empty((len(rows), *self.shape), np.uint8)
        ids = np.empty(len(rows), np.int64)
        problems = [""] * len(rows)
        for number in np.unique(numbers):
            shard, places = self.order.shards[number], np.flatnonzero(numbers == number)
            table = _table(shard)
            ids[places] = table.column("id").take(pa.array(rows[places])).to_numpy()
            encoded = table.column("image").take(pa.array(rows[places])).to_pylist()
            decoded = decode_all(encoded, image_size=self.image_size, channels=self.channels)
            for place, image in zip(places, decoded, strict=True):
                origin = f"{shard.path}, row {shard.start + rows[place]}"
                if isinstance(image, BadImageError):
                    problems[place] = f"{origin}: {image}"
                    image = self._another(shard, table, int(ids[place]), problems[place])
                self._check_shape(image, origin)
                out[place] = image
        return Images(out, ids, problems)

    def both(self, images: Tensor, ids: np.ndarray, step: int) -> tuple[Tensor, Tensor]:
        """Return the weak and the strong views of a step's images, on the device of these."""
        return self.view(images, ids, self.seed, step // self.order.steps_per_epoch)

    def _another(self, shard: Shard, table: pa.Table, sample: int, problem: str) -> np.ndarray:
        """Return the image that stands for a broken one."""
        if self.on_bad_image == "raise":
            raise ValueError(
                f"{problem}. Repair or remove it, or set on_bad_image to 'replace' to see another "
                "of its shard instead"
            )
        stream = stream_seed(self.seed, "instead of a broken image")
        for draw in keyed_uniform(stream, np.array([sample]), _DRAWS)[0].tolist():
            encoded = table.column("image")[int(draw * shard.count)].as_py()
            try:
                return decode(encoded, image_size=self.image_size, channels=self.channels)
            except BadImageError:
                continue
        raise ValueError(
            f"{problem}; nor can any of {_DRAWS} others that were drawn from its shard be decoded. "
            "Repair the file or take it out"
        )

    def _check_shape(self, image: np.ndarray, origin: str) -> None:
        if image.shape[1:] != self.shape[1:] or len(image) > self.shape[0]:
            raise ValueError(
                f"{origin}: an image of {_sides(image.shape)}, where the first has "
                f"{_sides(self.shape)}; set image_size (and channels) to bring all to one form"
            )

    def _first_shape(self) -> tuple[int, int, int]:
        """Return the shape that is set, or that of the first image of some that can be decoded."""
        if self.image_size is not None and self.channels is not None:
            return self.channels, self.image_size, self.image_size
        shards = self.order.shards
        for shard in shards[:: -(-len(shards) // _TRIED)]:
            for row in np.linspace(0, shard.count - 1, min(_DRAWS, shard.count)).astype(int):
                encoded = _table(shard).column("image")[row].as_py()
                try:
                    channels, height, width = decode(
                        encoded, image_size=self.image_size, channels=self.channels
                    ).shape
                    return channels, height, width
                except BadImageError as error:
                    problem = f"{shard.path}, row {shard.start + row}: {error}"
        raise ValueError(
            f"none of the images that were tried all over the files can be decoded; the last of "
            f"them: {problem}"
        )


class Observer:
    """What a stream knows of itself: how fast it is, and which images were broken."""

    def __init__(self, tell: Tell | None = None) -> None:
        self._since, self._images, self._rate = time.monotonic(), 0, 0.0
        self._broken: set[int] = set()
        self._tell = tell

    def saw(self, rank: int, ids: np.ndarray, problems: Sequence[str]) -> None:
        """Take note of a batch that was handed over."""
        self._images += len(ids)
        for sample, problem in zip(ids.tolist(), problems, strict=True):
            if problem and sample not in self._broken:
                self._broken.add(sample)
                if len(self._broken) <= _SHOWN:
                    logger.warning("%s; another image of its shard is seen instead", problem)
                if self._tell is not None:
                    self._tell(rank, problem)

    def figures(self) -> dict[str, float]:
        """Return images per second of the last second or more, and broken images so far."""
        seconds = time.monotonic() - self._since
        if seconds >= 1.0:
            self._rate = self._images / seconds
            self._since, self._images = time.monotonic(), 0
        return {
            "stream/images_per_s": self._rate,
            "stream/broken_images": float(len(self._broken)),
        }


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[0]} channel{'s' * (shape[0] > 1)} of {shape[1]} x {shape[2]} pixels"


class _Tables:
    """Ids and images of shards; those read last are kept while they are small."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Shard, pa.Table] = OrderedDict()
        self._bytes = 0

    def __call__(self, shard: Shard) -> pa.Table:
        """Return the table of a shard.

        Raises:
            ValueError: its file cannot be read, or is not as it was when the shards were found.
        """
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return self._kept[shard]
        table = self._kept[shard] = _read(shard)
        self._bytes += table.nbytes
        while len(self._kept) > 1 and self._bytes > _CACHE_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return table


_table = _Tables()


def _read(shard: Shard) -> pa.Table:
    path = Path(shard.path)
    with named_errors(path):
        state = path.stat()
        metadata = _metadata(path, state.st_mtime_ns, state.st_size)
        there = shard.group < metadata.num_row_groups
        if there and metadata.row_group(shard.group).num_rows == shard.count:
            with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
                return file.read_row_group(shard.group, columns=["id", "image"])
    raise ValueError(
        f"{path}: row group {shard.group} has not the {shard.count} rows any more that it had when "
        "the training began. Put the file back as it was, or start a new run"
    )


@functools.lru_cache(maxsize=128)
def _metadata(path: Path, changed_ns: int, size: int) -> pq.FileMetaData:
    """Return what a file's end says of its row groups: long where they are many and small."""
    return pq.read_metadata(path)
