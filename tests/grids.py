"""Grids of test cases: the default run takes what covers them, the slow run takes all."""

import itertools

import pytest


def covering(*axes):
    """Return cases of a grid in which any two values of two axes meet, as few as a greedy finds.

    A fault that one value causes, or two together, shows in them as in the whole grid; one that
    takes three shows in the slow run. The choice is the same in every run.
    """
    cases = list(itertools.product(*map(range, map(len, axes))))  # which value of each axis
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))  # the first of equals
        missing -= pairs[best]
        chosen.append(best)
    return [tuple(axis[number] for axis, number in zip(axes, case, strict=True)) for case in chosen]


def thinned(*axes):
    """Return a grid for ``pytest.mark.parametrize``: all but a covering subset is marked slow."""
    chosen = covering(*axes)
    return [
        pytest.param(*case, marks=[] if case in chosen else pytest.mark.slow)
        for case in itertools.product(*axes)
    ]
