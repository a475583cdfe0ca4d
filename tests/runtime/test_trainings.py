"""Which tracked trainings are compared, and in what they differ."""

import types

from raykb.runtime.trainings import differences, over_of, shared, unlike


def training(method, seed, **params):
    params = {"method": method, "seed_number": seed, "recipe.steps": "9"} | params
    return types.SimpleNamespace(params=params)


RUNS = [
    training("supervised", "0"),
    training("fixmatch", "0", **{"method.threshold": "0.95"}),
    training("fixmatch", "1", **{"method.threshold": "0.95"}),
]
ODD = training("fixmatch", "2", **{"method.threshold": "0.8"})
AXES = "method", "seed_number"


def test_methods_may_have_parameters_of_their_own_but_the_same_over_their_seeds():
    assert unlike(RUNS, *AXES) == []
    assert unlike([*RUNS, ODD], *AXES) == ["fixmatch: method.threshold: 0.8, 0.95"]


def test_without_one_thing_compared_the_parameter_heads_its_values():
    runs = [types.SimpleNamespace(params={"comparison.over": over}) for over in ("data", "model")]
    assert over_of(runs, "label") == "label"
    assert over_of(runs[:1], "label") == "data"
    assert over_of(runs[:1], "steps") == "steps"


def test_what_differs_is_told_by_label_and_what_is_alike_once():
    assert differences(RUNS, *AXES) == {"method.threshold": {"supervised": "", "fixmatch": "0.95"}}
    values = differences([*RUNS, ODD], *AXES)["method.threshold"]
    assert values["fixmatch"] == "0.95, 0.8"
    assert shared(RUNS) == {"recipe.steps": "9"}


def test_what_does_not_matter_is_no_difference():
    runs = [training("a", "0", storage="x"), training("b", "0", storage="y")]
    assert differences(runs, *AXES) == {}
