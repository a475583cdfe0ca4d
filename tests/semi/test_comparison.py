"""Which methods a run trains."""

import pytest

from raykb.semi.settings import Comparison


def test_the_method_comes_last_and_is_called_by_its_name():
    rivals = {"loose": {"name": "fixmatch", "threshold": 0.8}}
    methods = Comparison(seeds=2, rivals=rivals).methods({"name": "uda", "threshold": 0.7})
    assert list(methods.items()) == [*rivals.items(), ("uda", {"name": "uda", "threshold": 0.7})]


def test_two_of_one_name_are_refused():
    comparison = Comparison(rivals={"uda": {"name": "uda"}})
    with pytest.raises(ValueError, match=r"rivals: 'uda' is what the section 'method' is called"):
        comparison.methods({"name": "uda"})


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(ValueError, match=r"seeds: 0, must be at least 1; rivals: \['a/b'\]"):
        Comparison(seeds=0, rivals={"a/b": {"name": "uda"}, "c": {"name": "uda"}})
