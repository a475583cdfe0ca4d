"""What a policy does, to look at."""

from torch import Tensor

from raykb.augment.policy import Policy
from raykb.engine.seeding import generator


def contact_sheet(
    policy: Policy, images: Tensor, *, columns: int = 8, seed: int = 0
) -> dict[str, Tensor]:
    """Return what a policy does as titled columns, drawn by :mod:`raykb.report.images`.

    Every operation fires, so that each column shows its sub-policy at work; the titles give the
    probability and level of its operations. The first column holds the images as they are.

    Args:
        policy: the policy to look at; its first ``columns`` sub-policies are shown.
        images: uint8 (N, C, H, W), a handful.
        columns: sub-policies at most.
        seed: of the signs and of the centres of Cutout.
    """
    stream = generator(seed, "contact_sheet")
    sheet = {"original": images}
    for number, sub_policy in enumerate(policy.sub_policies[:columns]):
        certain = Policy([[(name, 1.0, level) for name, _, level in sub_policy]])
        lines = (f"{name}\np {p:.2f}, level {level:.2f}" for name, p, level in sub_policy)
        sheet["\n".join([f"sub-policy {number}", *lines])] = certain.apply(images, stream)
    return sheet
