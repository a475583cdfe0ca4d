"""The network of cells that a search found, by the file that it left: to be trained anew."""

from pathlib import Path

from raykb.engine.foreign import read_text
from raykb.nas.genotype import Genotype
from raykb.nas.scnas import GOLDEN, ScNas, network


def found_network(
    classes: int,
    channels: int = 1,
    *,
    genotype: Path | None = None,
    width: int = 8,
    layers: int = 6,
    bridge: bool = True,
) -> ScNas:
    """Return a 3-D network of the cells of a genotype; sides are multiples of 2^(layers / 2).

    Args:
        classes: of voxels, with the background.
        channels: of the images.
        genotype: its file, which all nodes see; None for the published cells.
        width: channels of the finest cell.
        layers: cells, half of them in the encoder.
        bridge: one more cell between encoder and decoder, as the paper has it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no genotype, or the sizes do not go together.
    """
    cells = GOLDEN if genotype is None else Genotype.from_json(read_text(genotype))
    return network(cells, width, layers, classes, channels, bridge)
