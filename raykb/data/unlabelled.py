"""Unlabelled images of a training: how many come with the labelled ones, and in which order."""

from dataclasses import dataclass
from typing import Literal

from raykb.data.order import ByShard
from raykb.data.sharded_images import ShardedImages
from raykb.data.source import Source, View
from raykb.engine.arguments import above, among, at_least, misfits, or_none, refuse


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """Unlabelled images in Parquet files; a section of the config.

    What is seen at a step is a function of the settings, the ids and how these are cut into shards.

    Args:
        paths: files or folders of Parquet shards with ``id`` and ``image``, at the same place on
            every host; None for the training images of the embedded sample.
        image_size: scale to cover a square of this many pixels and cut out its centre; None if all
            images have one size.
        channels: 1 (colour becomes luminance) or 3 (grey is repeated); None for what the first
            image has.
        on_bad_image: ``replace`` one that cannot be decoded, and say so; or ``raise``.
        mix_shards: shards whose rows are mixed with each other (see :class:`ByShard`).
        ratio: unlabelled images of one step for each labelled one; mu in the papers.
        views_by: who makes views: the ``workers`` that decode, or the ``trainer`` on its device.
    """

    paths: str | list[str] | None = None
    image_size: int | None = None
    channels: int | None = None
    on_bad_image: Literal["replace", "raise"] = "replace"
    mix_shards: int = 1
    ratio: int = 7
    views_by: Literal["workers", "trainer"] = "workers"

    def __post_init__(self) -> None:
        refuse(
            misfits(
                self,
                image_size=or_none(above(0)),
                channels=or_none(among(1, 3)),
                on_bad_image=among("replace", "raise"),
                mix_shards=at_least(1),
                ratio=at_least(1),
                views_by=among("workers", "trainer"),
            )
        )

    def examples(self, seed: int) -> ShardedImages:
        """Open the files.

        Args:
            seed: of the replacements of broken images.

        Raises:
            FileNotFoundError: a path does not exist or holds no Parquet file.
            ValueError: a file is not of this layout.
        """
        return ShardedImages(
            paths=self.paths,
            image_size=self.image_size,
            channels=self.channels,
            on_bad_image=self.on_bad_image,
            seed=seed,
        )

    def source(self, examples: ShardedImages, view: View, labelled: int, seed: int) -> Source:
        """Return what a training sees of them.

        Args:
            examples: as :meth:`examples` opened them, for ``seed``.
            view: makes the views.
            labelled: labelled images of a step, over all ranks.
            seed: of order and views.

        Raises:
            ValueError: there are fewer images than a batch has.
        """
        order = ByShard(
            examples.counts,
            batch_size=self.ratio * labelled,
            seed=seed,
            mix_shards=self.mix_shards,
        )
        return Source(examples, order, view, seed, self.views_by)
