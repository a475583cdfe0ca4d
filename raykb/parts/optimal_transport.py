"""What it costs to move one set of vectors onto another: optimal transport by proximal steps.

    C_mn  = 1 - cos(x_m, y_n)
    d     = sum_mn T_mn C_mn        T: the plan of least cost, rows sum to 1/M, columns to 1/N
    IPOT:   A = exp(-C / beta); repeat Q = A o T, delta = 1 / (N Q sigma), sigma = 1 / (M delta Q),
            T = diag(delta) Q diag(sigma)

Xie, Wang, Wang, Zha, "A fast proximal point method for computing exact Wasserstein distance", UAI
2019, arXiv:1802.04307; as Chen et al., "UNITER", ECCV 2020, have it for words and patches. The plan
has no gradient, the cost has.

Golden: equal sets give T = I/N and d = 0; a constant cost c gives d = c and T = 1/(M N).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from raykb.parts.precision import at_least_float32, in_float32

_NEVER = 1e4  # in a denominator: what is padding is sent nothing
_TINY = 1e-30  # likewise: a text without words has no plan, and shall have no NaN


def cosine_cost(words: Tensor, patches: Tensor) -> Tensor:
    """Return C (B, M, N) of words (B, M, d) and patches (B, N, d)."""
    first, second = (F.normalize(at_least_float32(each), dim=2) for each in (words, patches))
    return 1.0 - first @ second.transpose(1, 2)


@torch.no_grad()
@in_float32
def transport_plan(
    cost: Tensor, words: Tensor, patches: Tensor, *, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Return T (B, M, N), 0 where there is padding.

    Args:
        cost: (B, M, N).
        words: (B, M) bool, those that there are.
        patches: (B, N) bool, likewise.
        beta: weight of the proximal term; a smaller one needs fewer iterations, and is less stable.
        iterations: of the loop.
    """
    present = (patches[:, :, None] & words[:, None, :]).to(cost)  # (B, N, M)
    kernel = torch.exp(-cost.transpose(1, 2) / beta) * present  # A
    (m, no_word), (n, no_patch) = (
        (each.sum(1)[:, None, None].clamp(min=1), _NEVER * ~each[:, :, None])
        for each in (words, patches)
    )
    sigma = words[:, :, None].to(cost) / m  # (B, M, 1)
    plan = present
    for _ in range(iterations):
        moved = kernel * plan  # Q
        delta = 1.0 / (n * (moved @ sigma) + no_patch + _TINY)
        sigma = 1.0 / (m * (moved.transpose(1, 2) @ delta) + no_word + _TINY)
        plan = delta * moved * sigma.transpose(1, 2)
    return plan.transpose(1, 2)


@in_float32
def transport_distance(
    first: Tensor,
    second: Tensor,
    words: Tensor,
    patches: Tensor,
    *,
    beta: float = 0.5,
    iterations: int = 50,
) -> Tensor:
    """Return d (B,) of (B, M, d) and (B, N, d), of which there are ``words`` and ``patches``."""
    cost = cosine_cost(first, second)
    plan = transport_plan(cost.detach(), words, patches, beta=beta, iterations=iterations)
    return (plan * cost).sum((1, 2))
