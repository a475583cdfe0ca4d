"""Images with captions: one more kind of examples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raykb.data.images import ImageSet
from raykb.data.loading import decoded, load
from raykb.data.options import Options
from raykb.data.pair_sizes import padded
from raykb.data.records import Records
from raykb.data.source import Read
from raykb.data.wordpiece import WordPiece

LONGEST = 20_000
"""Signs of a caption; all are cut into tokens, of which the first ones are kept."""
Fit = Callable[[np.ndarray], np.ndarray]
"""Makes an image (C, H, W) uint8 as large as it shall be."""


@dataclass(frozen=True, eq=False)
class PairSet:
    """N images with captions; :class:`raykb.data.source.Examples`, labelled ones, too.

    Attributes:
        images: (N, C, H, W), and their labels and ids.
        captions: of each.
        tokens: (N, L) int64, the captions as tokens.
        words: (N, L) int64, the number of the word that a token is of, -1 of none.
        sizes: (N, 2) int64, height and width in pixels of what is at the top left of each image,
            where all else is padding; None where there is none.
    """

    images: ImageSet
    captions: tuple[str, ...]
    tokens: np.ndarray
    words: np.ndarray
    sizes: np.ndarray | None = None

    @classmethod
    def loaded(
        cls,
        records: Records,
        options: Options,
        vocabulary: WordPiece,
        length: int,
        fit: Fit | None = None,
    ) -> "PairSet":
        """Decode images, and cut their captions into ``length`` tokens.

        With ``fit`` each image keeps its own shape, as that makes it, and is padded to the largest.
        """
        sizes = None
        if fit is None:
            images = load(records, options)
        else:
            found, good, bad = decoded(records, options)
            pixels, sizes = padded([fit(image) for image in found])
            images = ImageSet(pixels, good.labels, good.ids, good.classes, bad)
        captions = captions_of(records.subset(np.flatnonzero(np.isin(records.ids, images.ids))))
        return cls(images, captions, *vocabulary.encode(captions, length), sizes)

    @property
    def ids(self) -> np.ndarray:
        """Ids of the images, (N,) int64."""
        return self.images.ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.images.classes

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> Read:
        """Return ``images``, ``sizes``, ``labels``, ``tokens`` and ``words`` of rows (n,)."""
        found = self.images.read(rows)
        if self.sizes is None:
            sizes = np.tile(np.array(self.images.images.shape[2:], np.int64), (len(rows), 1))
        else:
            sizes = self.sizes[rows]
        own = {"sizes": sizes, "tokens": self.tokens[rows], "words": self.words[rows]}
        return found._replace(arrays=found.arrays | own)

    def subset(self, rows: np.ndarray) -> "PairSet":
        """Return the pairs at ``rows``, copied, in that order."""
        captions = tuple(self.captions[row] for row in rows)
        sizes = None if self.sizes is None else self.sizes[rows]
        own = self.tokens[rows], self.words[rows], sizes
        return PairSet(self.images.subset(rows), captions, *own)


def captions_of(records: Records) -> tuple[str, ...]:
    """Return what each of records shows.

    Raises:
        ValueError: nobody has written that, or a whole book.
    """
    if records.caption is None:
        raise ValueError(
            f"{records.origin(int(records.rows[0]))}: has no captions; take emoji_sample, or "
            "Parquet shards with a column 'caption', as prepare_data.py emoji writes them"
        )
    captions = tuple(map(records.caption, records.rows.tolist()))
    lengths = np.array([len(caption) for caption in captions])
    if lengths.max() > LONGEST:
        row = int(records.rows[lengths.argmax()])
        raise ValueError(
            f"{records.origin(row)}: has a caption of {lengths.max()} signs, must be at most "
            f"{LONGEST}; shorten it: what follows the first {LONGEST} would not be seen"
        )
    return captions
