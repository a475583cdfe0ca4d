"""Arguments that are not what they must be: all of them are told, in a line each."""

import math
import types

import pytest

from raykb.engine.arguments import (
    above,
    among,
    at_least,
    between,
    check_settings,
    misfits,
    or_none,
    refuse,
    within,
)


def of(**values):
    return types.SimpleNamespace(**values)


@pytest.mark.parametrize(
    ("rule", "good", "bad", "text"),
    [
        (at_least(1), (1, 2.5, math.inf), (0, -1, 0.99), "at least 1"),
        (above(0.5), (0.51, 7), (0.5, 0), "above 0.5"),
        (between(0, 1), (0, 0.5, 1), (1.001, -0.1), "in 0..1"),
        (within(0, 1), (0, 0.999), (1, -0.1), "in [0, 1)"),
        (among("pack", "spread"), ("pack", "spread"), ("", "pac"), "'pack' or 'spread'"),
        (or_none(above(0)), (None, 0.1), (0, -1), "above 0, or null"),
    ],
)
def test_a_rule_says_what_it_holds(rule, good, bad, text):
    assert rule.text == text
    assert all(rule.holds(value) for value in good)
    assert not any(rule.holds(value) for value in bad)


@pytest.mark.parametrize(
    "rule", [at_least(0), above(0), between(0, 1), within(0, 1), or_none(at_least(0))]
)
def test_nan_keeps_no_rule(rule):
    assert not rule.holds(math.nan)


def test_all_misfits_are_told_in_the_order_of_the_rules():
    given = of(steps=0, decay=1.0, place="here", seeds=3)
    rules = {"seeds": at_least(1), "decay": within(0, 1), "place": among("a", "b")}
    assert misfits(given, **rules, steps=at_least(1)) == [
        "decay: 1.0, must be in [0, 1)",
        "place: 'here', must be 'a' or 'b'",
        "steps: 0, must be at least 1",
    ]


def test_problems_are_refused_in_one_message_and_none_are_not():
    refuse([])
    with pytest.raises(ValueError, match=r"^a: 0, must be at least 1; b: x$"):
        refuse(["a: 0, must be at least 1", "b: x"])


def test_settings_that_keep_their_rules_are_fine_and_all_others_are_refused_at_once():
    settings = of(steps=0, share=1.5, place="here")
    check_settings(settings, place=among("here"))
    message = r"^steps: 0, must be at least 1; share: 1\.5, must be in 0\.\.1$"
    with pytest.raises(ValueError, match=message):
        check_settings(settings, steps=at_least(1), share=between(0, 1), place=among("here"))
