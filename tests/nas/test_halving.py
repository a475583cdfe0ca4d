import math

import pytest

from raykb.nas.halving import Halving


def test_rungs_divide_the_budget_and_without_any_nothing_is_halved():
    assert Halving(rungs=3).budgets(27) == [1, 3, 9]
    assert Halving(rungs=2, reduction_factor=2.0).budgets(10) == [2, 5]
    assert Halving().budgets(1) == []


@pytest.mark.parametrize(("rungs", "steps", "at"), [(1, 2, "[0]"), (3, 26, "[0, 2, 8]")])
def test_a_rung_before_the_first_step_is_refused(rungs, steps, at):
    with pytest.raises(ValueError, match=f"rungs: {rungs}, which of {steps} steps .*fewer") as no:
        Halving(rungs=rungs).budgets(steps)
    assert at in str(no.value)


def test_two_rungs_at_one_step_are_refused():
    with pytest.raises(ValueError, match=r"come after \[3, 3\]"):
        Halving(rungs=2, reduction_factor=1.1).budgets(4)


def test_the_best_go_on_in_their_order_and_one_without_a_figure_is_the_last():
    worth = {"a": 0.2, "b": -math.inf, "c": 0.9, "d": 0.5, "e": 0.2}
    assert Halving(reduction_factor=2.0).survivors(worth) == ["a", "c", "d"]
    assert Halving(reduction_factor=3.0).survivors(worth) == ["c", "d"]
    assert Halving(reduction_factor=5.0).survivors(worth) == ["c"]
    assert Halving(reduction_factor=9.0).survivors({"b": -math.inf}) == ["b"]


def test_twenty_seven_take_a_ninth_of_what_all_of_them_would():
    halving = Halving(rungs=3)
    contenders, spent, before = dict.fromkeys(map(str, range(27)), 0.0), 0, 0
    for rung in [*halving.budgets(27), 27]:
        spent += len(contenders) * (rung - before)
        contenders, before = dict.fromkeys(halving.survivors(contenders), 0.0), rung
    assert spent == 27 * 27 / 9  # each goes on from where it halted: 27 + 9 x 2 + 3 x 6 + 1 x 18


def test_what_is_no_halving_is_refused():
    with pytest.raises(ValueError, match=r"rungs: -1, .*; reduction_factor: 1.0, must be above 1"):
        Halving(rungs=-1, reduction_factor=1.0)
