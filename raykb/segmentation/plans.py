"""What a plan says: how cases are prepared, and the networks with what they are fed."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from raykb.engine.arguments import refuse
from raykb.segmentation.documents import Document
from raykb.segmentation.fingerprint import Intensities

Name = Literal["2d", "3d_fullres", "3d_lowres"]


@dataclass(frozen=True)
class Normalisation:
    """How a channel is normalised.

    Attributes:
        scheme: ``ct`` clips to the outer percentiles of ``intensities``, subtracts their mean and
            divides by their std; ``z_score`` takes mean and std of the case itself.
        nonzero: ``z_score`` takes them, and has an effect, within what is not zero alone.
        intensities: of ``ct``; None otherwise.
    """

    scheme: Literal["ct", "z_score"]
    nonzero: bool
    intensities: Intensities | None


@dataclass(frozen=True)
class Configuration:
    """A network and what it is fed with; axes are those of the plan, of a slice but the first.

    Attributes:
        name: of the configuration.
        spacing_mm: that cases are resampled to.
        median_shape: of the cases then.
        patch_size: in voxels.
        batch_size: patches.
        strides: of each stage from the one before, the finest first.
        kernel_sizes: of each stage.
        widths: channels of each stage.
        batch_dice: Dice is that of the whole batch, not the mean over its patches.
    """

    name: Name
    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    batch_dice: bool

    def __post_init__(self) -> None:
        axes, stages = len(self.patch_size), len(self.widths)
        own = {name: len(getattr(self, name)) for name in ("spacing_mm", "median_shape")}
        lengths = {name: (length, axes) for name, length in own.items()}
        for name in ("strides", "kernel_sizes"):
            rows = getattr(self, name)
            lengths[name] = (len(rows), stages)
            lengths |= {f"{name}[{n}]": (len(row), axes) for n, row in enumerate(rows)}
        refuse(
            [
                f"{self.name}, {name}: has {given} entries, must have {wanted}, for a patch of "
                f"{axes} axes and {stages} stages"
                for name, (given, wanted) in lengths.items()
                if given != wanted
            ]
        )

    @property
    def network(self) -> dict[str, Any]:
        """What :class:`raykb.models.planned_unet.PlannedUNet` is made by, beside its classes."""
        return {name: getattr(self, name) for name in ("strides", "kernel_sizes", "widths")}


@dataclass(frozen=True)
class Plan(Document):
    """What :func:`plan` decides.

    Attributes:
        transpose: which axis of a case (0 is Z) comes first, second and third.
        normalisation: of each channel.
        labels: their number, with the background.
        configurations: at least one, each of another name.
    """

    FORMAT: ClassVar[str] = "raykb.plan"
    VERSION: ClassVar[int] = 1

    transpose: tuple[int, int, int]
    normalisation: tuple[Normalisation, ...]
    labels: int
    configurations: tuple[Configuration, ...]

    def __post_init__(self) -> None:
        problems = []
        if sorted(self.transpose) != [0, 1, 2]:
            problems.append(f"transpose: {self.transpose}, must have 0, 1 and 2, each once")
        if not self.names or len(set(self.names)) < len(self.names):
            problems.append(f"configurations: {self.names}, must be at least one, each once")
        refuse(problems)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the configurations."""
        return tuple(configuration.name for configuration in self.configurations)

    @property
    def cascade(self) -> bool:
        """Whether the full resolution can go on from what was found at the low one."""
        return {"3d_lowres", "3d_fullres"} <= set(self.names)

    def configuration(self, name: str) -> Configuration:
        """Return a configuration; raises KeyError that tells which there are."""
        if name not in self.names:
            raise KeyError(f"configuration: {name!r}, this plan has {', '.join(self.names)}")
        return self.configurations[self.names.index(name)]
