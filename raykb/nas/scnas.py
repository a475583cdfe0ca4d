"""SCNAS: the U-shaped network that its four types of cells make up, and the published cells.

Kim, Kim, Lim, Baek, Kim, Cho, Yoon, Kim, "Scalable Neural Architecture Search for 3D Medical Image
Segmentation", MICCAI 2019, arXiv:1906.05956.

    level 0   stem ───────────────────────────────────── + ─ head
    level 1      └─ reduction ─ normal ─────── + ─ expansion ┘
    level 2             └─ reduction ─ ... ─ bridge ─ normal ┘
                                                                       + adds what the encoder has
Channels double with each reduction and halve with each expansion. A cell takes the outputs of the
two before it. After decoder cell i the output of encoder cell L - 2 - i is added, after the last
one the stem's.

Verified, in two public copies of the network: the cells, stem, skips, norms, gates and channels of
:data:`GOLDEN` without bridge, hence the parameter counts that the tests hold. In notes of the paper
and in one copy: the bridge, one more encoder-normal cell.

Departures:
    - the paper has no official code. What the copies do not settle is plain PyTorch: slope 0.01,
      average pooling that counts its padding, sigmoid gates behind a ReLU.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from raykb.nas.cell import Cell, CellPlan, Choice, SqueezeExcitation
from raykb.nas.genotype import CONCATENATED, Allowed, Genotype, Place, SearchSpace
from raykb.nas.operations import CONVOLUTIONS, NORMS

_A, _I = "avg_pool_3", "identity"
_S, _S2, _S3 = "conv_3", "conv_3_dilation_2", "conv_3_dilation_3"

# fmt: off
GOLDEN = Genotype(
    reduction=(
        ("n0", "s0", _I), ("n0", "s1", _S2),
        ("n1", "s0", _I), ("n1", "n0", _A),
        ("n2", "n0", _I), ("n2", "n1", _S),
        ("n3", "n0", _S), ("n3", "n2", _A),
    ),
    encoder_normal=(
        ("n0", "s0", _S), ("n0", "s1", _S2),
        ("n1", "s0", _A), ("n1", "n0", _I),
        ("n2", "s0", _S), ("n2", "n0", _I),
        ("n3", "s0", _I),
    ),
    expansion=(
        ("n0", "s0", _S), ("n0", "s1", _S3),
        ("n1", "s0", _I), ("n1", "n0", _I),
        ("n2", "s1", _S2), ("n2", "n1", _I),
        ("n3", "s0", _I), ("n3", "s1", _A),
    ),
    decoder_normal=(
        ("n0", "s1", _S2),
        ("n1", "s1", _I), ("n1", "n0", _I),
        ("n2", "s1", _S2), ("n2", "n1", _I),
        ("n3", "s0", _I), ("n3", "n0", _A),
    ),
)
"""The cells of the public copies."""
# fmt: on


def plans(width: int, layers: int, *, bridge: bool) -> list[CellPlan]:
    """Return where each cell stands, encoder first.

    Args:
        width: C, channels of a cell at level 0; there the concatenation has 3 C.
        layers: L, cells of the encoder, and as many of the decoder; even.
        bridge: whether an encoder-normal cell joins the two.
    """
    found: list[CellPlan] = []
    channels, level = width, 0
    inputs = (len(CONCATENATED) * width,) * 2

    def add(name: str, kind: str, *projections: str) -> None:
        nonlocal inputs
        found.append(
            CellPlan(name, kind, channels, level, inputs, (projections[0], projections[1]))
        )
        inputs = (inputs[1], len(CONCATENATED) * channels)

    for i in range(layers // 2):
        channels, level = 2 * channels, level + 1
        add(f"encoder{2 * i}", "reduction", "project", "project")
        add(f"encoder{2 * i + 1}", "encoder_normal", "reduce", "project")
    if bridge:
        add("bridge", "encoder_normal", "project", "project")
    for i in range(layers // 2):
        add(f"decoder{2 * i}", "decoder_normal", "upsample" if i else "project", "project")
        channels, level = channels // 2, level - 1
        add(f"decoder{2 * i + 1}", "expansion", "upsample", "upsample")
    return found


class ScNas(nn.Module):
    """A network of cells, from images (N, channels, sides) to logits (N, classes, sides).

    Each side is a multiple of 2^(layers / 2), and one of them a larger one: instance norm needs
    more than one voxel at the deepest level.

    Args:
        candidates: for each type of cell the operations of each edge.
        width: C, channels of a cell at level 0, at least 1.
        layers: L, cells of the encoder; even, at least 2.
        classes: K.
        channels: of the images.
        bridge: whether a cell joins encoder and decoder.
        dims: 2 or 3.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        candidates: Allowed,
        *,
        width: int,
        layers: int,
        classes: int,
        channels: int,
        bridge: bool = True,
        dims: int = 3,
    ) -> None:
        super().__init__()
        _check(width=width, layers=layers, classes=classes, channels=channels, dims=dims)
        self.dims, self.factor = dims, 2 ** (layers // 2)
        wide = len(CONCATENATED) * width
        self.stem = nn.Sequential(
            CONVOLUTIONS[dims](channels, wide, 3, padding=1, bias=False),
            nn.LeakyReLU(),
            SqueezeExcitation(wide),
            NORMS[dims](wide),
        )
        self.plans = plans(width, layers, bridge=bridge)
        self.cells = nn.ModuleDict(
            {plan.name: Cell(plan, candidates[plan.kind], dims=dims) for plan in self.plans}
        )
        self.head = CONVOLUTIONS[dims](wide, classes, 1)

    def forward(
        self, images: Tensor, choices: Mapping[str, Mapping[Place, Choice]] | None = None
    ) -> Tensor:
        """Return logits.

        Args:
            images: (N, channels, sides).
            choices: what is run, by type of cell and place; None runs the first candidates, which
                are all that a derived network has.

        Raises:
            ValueError: a side is no multiple, or there are none but single voxels at the deepest
                level.
        """
        self._check_sides(images)
        s0 = s1 = self.stem(images)  # (N, 3 C, sides)
        skips = [s1]
        for plan in self.plans:
            cell = self.cells[plan.name]
            output = cell(s0, s1, None if choices is None else choices[plan.kind])
            if plan.name == "decoder0":
                skips.pop()  # the deepest goes on by itself
            if plan.name.startswith("encoder"):
                skips.append(output)
            if plan.name.startswith("decoder"):
                output = output + skips.pop()
            s0, s1 = s1, output
        logits: Tensor = self.head(s1)
        return logits

    def _check_sides(self, images: Tensor) -> None:
        sides = tuple(images.shape[2:])
        multiples = len(sides) == self.dims and not any(side % self.factor for side in sides)
        if not multiples or max(sides) <= self.factor:
            raise ValueError(
                f"images: sides {sides}, must be {self.dims} multiples of {self.factor}, one of "
                f"them larger than {self.factor}; pad them, or take fewer layers"
            )


def _check(**sizes: int) -> None:
    allowed = {
        "width": (sizes["width"] >= 1, "at least 1, as 8"),
        "layers": (sizes["layers"] >= 2 and sizes["layers"] % 2 == 0, "even and at least 2, as 6"),
        "classes": (sizes["classes"] >= 1, "at least 1, as 4"),
        "channels": (sizes["channels"] >= 1, "at least 1, as 1"),
        "dims": (sizes["dims"] in CONVOLUTIONS, "2 or 3"),
    }
    wrong = [
        f"{n}: {sizes[n]}, must be {text}" for n, (legal, text) in allowed.items() if not legal
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def network(
    cells: Genotype | SearchSpace,
    width: int,
    layers: int,
    classes: int,
    channels: int,
    bridge: bool = True,
    dims: int = 3,
) -> ScNas:
    """Return the network of a genotype; of a search space the supernet, which holds all of its.

    Parameters have the same names in both. The arguments are those of :class:`ScNas`.
    """
    return ScNas(
        cells.allowed,
        width=width,
        layers=layers,
        classes=classes,
        channels=channels,
        bridge=bridge,
        dims=dims,
    )
