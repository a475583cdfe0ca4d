"""How networks are planned: what nnU-Net's rules are told, and limits on what they give."""

import math
from dataclasses import dataclass, replace

from raykb.engine.arguments import above, at_least, misfits, or_none, refuse
from raykb.segmentation.fingerprint import Fingerprint
from raykb.segmentation.nnunet import plan, target_spacing
from raykb.segmentation.plans import Configuration, Name, Plan
from raykb.segmentation.topology import topology, widths

FULL: Name = "3d_fullres"  # the configuration that is trained


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How networks are planned; a section of the config.

    nnU-Net knows ``memory_gb`` alone. The others are limits put on its plan, the same for every
    task, so that small networks can be compared where there is no GPU; null leaves the plan.

    Args:
        memory_gb: of the device.
        width: channels of the finest stage, where the plan has 32.
        patch: most voxels of a patch along an axis.
        multiple: a patch is made larger along each axis up to a multiple of it, a power of two, for
            networks that halve all axes whatever the plan says.
        batch_size: most patches of a batch.
    """

    memory_gb: float = 8.0
    width: int | None = None
    patch: int | None = None
    multiple: int = 1
    batch_size: int | None = None

    def __post_init__(self) -> None:
        least = or_none(at_least(1))
        rules = {"memory_gb": above(0), "width": least, "batch_size": least}
        problems = misfits(self, **rules, patch=or_none(at_least(8)), multiple=at_least(1))
        if self.multiple & (self.multiple - 1):
            problems.append(f"multiple: {self.multiple}, must be a power of two, as 8")
        refuse(problems)

    def plan(self, found: Fingerprint) -> Plan:
        """Return nnU-Net's plan within the limits; it has the configuration :data:`FULL` alone.

        Of cases of one slice that is its plan in 2-D, whose network does not reach across slices.

        Raises:
            ValueError: no patch fits into the memory.
        """
        whole = plan(found, self.memory_gb)
        if FULL in whole.names:
            own = whole.configuration(FULL)
        else:
            apart = float(target_spacing(found)[whole.transpose[0]])
            own = in_space(whole.configuration("2d"), apart)
        return replace(whole, configurations=(self._limited(own),))

    def _limited(self, own: Configuration) -> Configuration:
        most = math.inf if self.patch is None else self.patch
        size = [math.ceil(min(n, most) / self.multiple) * self.multiple for n in own.patch_size]
        shape = own if size == list(own.patch_size) else topology(own.spacing_mm, size)
        stages, width = len(shape.strides), self.width or own.widths[0]
        return replace(
            own,
            patch_size=shape.patch_size,
            strides=shape.strides,
            kernel_sizes=shape.kernel_sizes,
            widths=widths(stages, max(width, *own.widths), width),
            batch_size=min(own.batch_size, self.batch_size or own.batch_size),
        )


def in_space(own: Configuration, apart_mm: float) -> Configuration:
    """Return a plan for slices as one for volumes that takes them one by one.

    Args:
        own: of two axes.
        apart_mm: from slice to slice.
    """
    return replace(
        own,
        name=FULL,
        spacing_mm=(apart_mm, *own.spacing_mm),
        median_shape=(1.0, *own.median_shape),
        patch_size=(1, *own.patch_size),
        strides=tuple((1, *each) for each in own.strides),
        kernel_sizes=tuple((1, *each) for each in own.kernel_sizes),
    )
