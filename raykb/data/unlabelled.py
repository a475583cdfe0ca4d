"""Unlabelled images of a training: how many come with the labelled ones, and in which order."""

from dataclasses import dataclass, fields
from typing import Literal

from raykb.data.order import ByShard
from raykb.data.sharded_images import SHARD_RULES, ShardedImages, ShardSettings
from raykb.data.source import Source, View
from raykb.engine.arguments import among, at_least, misfits, refuse


@dataclass(kw_only=True, eq=False)
class UnlabelledImages(ShardSettings):
    """Unlabelled images in Parquet files; a section of the config.

    What is seen at a step is a function of the settings, the ids and how these are cut into shards.

    Args: those of :class:`ShardSettings`, and
        mix_shards: shards whose rows are mixed with each other (see :class:`ByShard`).
        ratio: unlabelled images of one step for each labelled one; mu in the papers.
        views_by: who makes views: the ``workers`` that decode, or the ``trainer`` on its device.
    """

    mix_shards: int = 1
    ratio: int = 7
    views_by: Literal["workers", "trainer"] = "workers"

    def __post_init__(self) -> None:
        refuse(
            misfits(
                self,
                **SHARD_RULES,
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
        which = {each.name: getattr(self, each.name) for each in fields(ShardSettings)}
        return ShardedImages(**which, seed=seed)

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
