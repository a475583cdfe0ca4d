"""Successive halving: many networks are begun, and the best of them are trained to the end.

Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016, arXiv:1502.07943.

    r_i     = floor(R / eta^(k - i))        steps after which rung i is, i = 0, …, k - 1
    n_(i+1) = ceil(n_i / eta)               who goes on: the best so far

Symbols:
    R      steps of the whole training
    k      rungs
    eta    reduction factor

Departures:
    - who goes on is decided when all have come to a rung, not as they come (ASHA, Li et al., MLSys
      2020): so it does not depend on how many run side by side, and a run that was killed
      decides as it did.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raykb.engine.arguments import above, at_least, check_settings


@dataclass(frozen=True, kw_only=True)
class Halving:
    """How retrainings are halved; a section of the config.

    Args:
        rungs: k; 0 trains all to the end.
        reduction_factor: eta.
    """

    rungs: int = 0
    reduction_factor: float = 3.0

    def __post_init__(self) -> None:
        check_settings(self, rungs=at_least(0), reduction_factor=above(1))

    def budgets(self, steps: int) -> list[int]:
        """Return r_0, r_1, … of a training of so many steps.

        Raises:
            ValueError: two rungs, or a rung and an end, are at the same step, or one at none.
        """
        factors = [self.reduction_factor ** (self.rungs - i) for i in range(self.rungs)]
        found = [math.floor(steps / factor) for factor in factors]
        if len({0, *found, steps}) < self.rungs + 2:
            raise ValueError(
                f"rungs: {self.rungs}, which of {steps} steps come after {found}, must each be "
                "after a step of its own before the last; take fewer, or train longer"
            )
        return found

    def survivors(self, worth: Mapping[str, float]) -> list[str]:
        """Return the labels that go on, in their order; of equals the first ones."""
        count = math.ceil(len(worth) / self.reduction_factor)
        best = sorted(worth, key=lambda label: -worth[label])[:count]
        return [label for label in worth if label in best]
