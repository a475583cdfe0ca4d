"""A teacher that follows its student slowly.

    xi <- m xi + (1 - m) theta                          after each step of the student
    m(k) = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2        from m_0 to 1 in K steps

Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780; the
climb of m to 1 is Grill et al., "Bootstrap your own latent", NeurIPS 2020, arXiv:2006.07733.
"""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Module = TypeVar("Module", bound=nn.Module)


def teacher_of(student: Module) -> Module:
    """Return a copy of a student that gets no gradient."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher


def cosine_momentum(start: float, step: int, steps: int) -> float:
    """Return m(step), from ``start`` at step 0 to 1 at ``steps``."""
    return 1.0 - (1.0 - start) * (math.cos(math.pi * step / steps) + 1.0) / 2.0


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher's parameters towards those of its student.

    Buffers stay its own: where it has batch norm, it follows the batches that it sees itself.

    Args:
        teacher: what :func:`teacher_of` made of this student.
        student: stays as it is.
        momentum: m, in [0, 1]; 1 leaves the teacher where it is.

    Raises:
        ValueError: the two have other parameters.
    """
    own: list[Tensor] = list(teacher.parameters())
    new: list[Tensor] = list(student.parameters())
    if [value.shape for value in own] != [value.shape for value in new]:
        raise ValueError(
            f"teacher: {len(own)} parameters, where its student has {len(new)}, or of other "
            "shapes; make it by teacher_of(student)"
        )
    get_ema_multi_avg_fn(momentum)(own, new, 0)  # what it counts it does not look at
