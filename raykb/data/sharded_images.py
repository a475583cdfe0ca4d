"""Images in Parquet files, decoded when they are read: more of them than memory holds.

A broken image is replaced by another of its shard, drawn by its id: the same in every epoch, under
the broken one's id. So positions never move, and no id is seen twice in an epoch.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raykb.data.decoding import BadImageError, decode, decode_all
from raykb.data.shards import Shard, find_shards, read_shard
from raykb.data.source import Read, Selected
from raykb.engine.arguments import above, among, check_settings, or_none
from raykb.engine.seeding import keyed_uniform, stream_seed

_SAMPLE = Path(__file__).parent / "samples" / "fashion_mnist_train.parquet"
_DRAWS = 32  # of another image for a broken one
_TRIED = 8  # shards, for one image that can be decoded
SHARD_RULES = {
    "image_size": or_none(above(0)),
    "channels": or_none(among(1, 3)),
    "on_bad_image": among("replace", "raise"),
}
"""What :class:`ShardSettings` must be."""


@dataclass(kw_only=True, eq=False)
class ShardSettings:
    """Which images in Parquet files, and in what form; what opens or streams them has these.

    Args:
        paths: files or folders of Parquet shards with ``id`` and ``image``, at the same place on
            every host; None for the training images of the embedded sample.
        image_size: scale to cover a square of this many pixels and cut out its centre; None if all
            images have one size.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated); None for what the first
            image has.
        on_bad_image: ``replace`` one that cannot be decoded, and say so; or ``raise``.
    """

    paths: str | list[str] | None = None
    image_size: int | None = None
    channels: int | None = None
    on_bad_image: Literal["replace", "raise"] = "replace"


@dataclass(kw_only=True, eq=False)
class ShardedImages(ShardSettings):
    """Images in Parquet files, as :class:`raykb.data.source.Examples` with the array ``images``.

    Args: those of :class:`ShardSettings`, and
        seed: of the replacements.

    Attributes:
        shards: row groups, in file order, as the rows are.
        shape: channels, height and width of each image.
        digest: stands for the ids and how they are cut into shards, wherever the files are.

    Raises:
        FileNotFoundError: a path does not exist or holds no Parquet file.
        ValueError: a file is not of this layout, ids are missing or occur twice, or no image can be
            decoded.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, **SHARD_RULES)
        shards, ids = find_shards(str(_SAMPLE) if self.paths is None else self.paths)
        self.shards, self._ids = tuple(shards), ids
        self._ends = np.cumsum(self.counts)
        self.shape = self._first_shape()
        self.digest = hashlib.sha256(self.counts.tobytes() + ids.tobytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ids": None}  # they stand in the files

    @property
    def ids(self) -> np.ndarray:
        """Ids of all images in file order, (N,) int64."""
        if self._ids is None:
            self._ids = find_shards(self.files)[1]
        return self._ids

    @property
    def counts(self) -> np.ndarray:
        """Images of each shard, (S,) int64, as :class:`raykb.data.order.ByShard` takes them."""
        return np.array([shard.count for shard in self.shards])

    @property
    def files(self) -> list[str]:
        """Absolute paths of the files that have images, in their order."""
        return list(dict.fromkeys(shard.path for shard in self.shards))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def seeded(self, seed: int) -> "ShardedImages":
        """Return the same images with other replacements; the files are not looked at again."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def subset(self, rows: np.ndarray) -> Selected:
        """Return the images at ``rows`` alone."""
        return Selected(self, rows)

    def read(self, rows: np.ndarray) -> Read:
        """Return ``images`` (n, C, H, W) uint8 of ``rows``.

        Raises:
            ValueError: an image is broken and must not be replaced or cannot be, or is of another
                size than the others; file and row are named.
        """
        out = np.empty((len(rows), *self.shape), np.uint8)
        ids = np.empty(len(rows), np.int64)
        problems = [""] * len(rows)
        numbers = np.searchsorted(self._ends, rows, side="right")  # of the shards
        for number in np.unique(numbers):
            shard, places = self.shards[number], np.flatnonzero(numbers == number)
            table, inside = read_shard(shard), rows[places] - (self._ends[number] - shard.count)
            ids[places] = table.column("id").take(pa.array(inside)).to_numpy()
            encoded = table.column("image").take(pa.array(inside)).to_pylist()
            decoded = decode_all(encoded, image_size=self.image_size, channels=self.channels)
            for place, row, image in zip(places, inside, decoded, strict=True):
                origin = f"{shard.path}, row {shard.start + row}"
                if isinstance(image, BadImageError):
                    problems[place] = f"{origin}: {image}"
                    image = self._another(shard, table, int(ids[place]), problems[place])
                self._check_shape(image, origin)
                out[place] = image
        return Read({"images": out}, ids, problems)

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
        for shard in self.shards[:: -(-len(self.shards) // _TRIED)]:
            for row in np.linspace(0, shard.count - 1, min(_DRAWS, shard.count)).astype(int):
                encoded = read_shard(shard).column("image")[row].as_py()
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


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[0]} channel{'s' * (shape[0] > 1)} of {shape[1]} x {shape[2]} pixels"
