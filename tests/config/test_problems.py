import pickle

import pytest

from raykb.config import ConfigError, Problems, build


def net(*, depth: int, widen: int = 1) -> None:
    raise ValueError(f"depth: {depth}, must be even; widen: {widen}, must be odd; so be it")


def test_the_error_survives_a_pickle():
    error = ConfigError("run.yaml", ["a: missing"])
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "run.yaml: 1 problem\n  - a: missing"


def test_what_is_refused_is_told_with_its_place():
    problems = Problems()
    with problems.at("model"):
        build(net, {"depht": 3})
    with problems.at("stream."):
        raise OSError("nowhere: is no file; make it")
    with problems.at():
        raise TypeError("as it is")
    with problems.at("", {"a": 1, "b": 2}):
        raise ValueError("a: 1, must be 2; b: 2, must be 1")
    assert list(problems) == [
        "model.depht: unknown (did you mean 'depth'?)",
        "model.depth: missing; int",
        "stream: nowhere: is no file; make it",
        "as it is",
        "a: 1, must be 2",
        "b: 2, must be 1",
    ]


def test_a_message_is_taken_apart_only_at_the_names_of_arguments():
    problems = Problems()
    section = {"depth": 3, "widen": 2}
    with problems.at("model", section):
        build(net, section)
    with problems.at("model"):
        build(net, section)
    assert list(problems) == [
        "model.depth: 3, must be even",
        "model.widen: 2, must be odd; so be it",
        "model: depth: 3, must be even; widen: 2, must be odd; so be it",
    ]


def test_what_goes_well_adds_nothing_and_nothing_is_refused():
    problems = Problems()
    with problems.at("model"):
        made = 3
    assert made == 3
    assert not problems
    problems.refuse("this run cannot be")


def test_all_is_refused_at_once_in_order_and_once_each():
    problems = Problems()
    problems.add("b: 1", "a: 2")
    problems.add("b: 1")
    with problems.at("a"):
        raise ValueError("2")
    assert len(problems) == 2
    with pytest.raises(ConfigError) as raised:
        problems.refuse("this run cannot be")
    assert raised.value.problems == ("b: 1", "a: 2")
    assert str(raised.value) == "this run cannot be: 2 problems\n  - b: 1\n  - a: 2"


def test_what_was_refused_together_is_told_one_by_one_at_a_place_around_it():
    inner, outer = Problems(), Problems()
    inner.add("lr: -1", "epochs: 0")
    with outer.at("recipe"):
        inner.refuse("this recipe cannot be")
    assert list(outer) == ["recipe.lr: -1", "recipe.epochs: 0"]


def test_other_errors_are_not_swallowed():
    problems = Problems()
    with pytest.raises(KeyError), problems.at("model"):
        raise KeyError("x")
    assert not problems
