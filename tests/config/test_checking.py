from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from shared_config import problems_of

from raykb.config import ConfigError, Renamed, Section, Value, build, check


class Net:
    def __init__(self, depth: int, widen: float = 1, *, classes: int = 10) -> None:
        self.arguments = (depth, widen, classes)


@dataclass(frozen=True, kw_only=True)
class Training:
    epochs: int
    lr: float = 0.1
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value}, must be positive"
            for name, value in (("epochs", self.epochs), ("lr", self.lr))
            if value <= 0
        ]
        if problems:
            raise ValueError("; ".join(problems))
        if len(self.steps) > self.epochs:
            raise ValueError(f"{len(self.steps)} steps in {self.epochs} epochs")


def tiny(width: int = 1) -> str:
    return f"tiny {width}"


TABLE = {"net": Net, "tiny": tiny}


def test_the_name_picks_the_constructor():
    assert build(TABLE, {"name": "tiny", "width": 3}) == "tiny 3"
    assert build(TABLE, {"name": "net", "depth": 2}, classes=5).arguments == (2, 1, 5)


def test_a_constructor_alone_takes_the_whole_section():
    assert build(Training, {"epochs": 2, "lr": 1, "steps": [1, 2]}) == Training(
        epochs=2, lr=1.0, steps=(1, 2)
    )
    assert build(partial(tiny, width=4), {}) == "tiny 4"


def test_build_names_all_problems_of_a_section():
    section = {"name": "net", "widden": 3, "widen": "wide", "classes": 3}
    assert problems_of(build, TABLE, section, classes=3) == [
        "widden: unknown (did you mean 'widen'?)",
        'widen: "wide", must be float',
        "classes: given by the program; leave it out",
        "depth: missing; int",
    ]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"name": "nett"}, "name: \"nett\", unknown (did you mean 'net'?)"),
        ({"name": "vit"}, 'name: "vit", unknown; known: net, tiny'),
        ({"name": 3}, "name: 3, unknown; known: net, tiny"),
        ({}, "name: missing; one of net, tiny"),
    ],
)
def test_a_wrong_name_is_reported_with_what_there_is(section, problem):
    assert problems_of(build, TABLE, section) == [problem]


def test_a_constructor_that_takes_anything_is_given_anything():
    assert build(lambda **kwargs: kwargs, {"a": 1}) == {"a": 1}


def test_an_annotation_only_a_type_checker_can_read_is_not_checked():
    def function(x: "Absent") -> Any:  # noqa: F821
        return x

    assert build(function, {"x": 3}) == 3


FITS = [
    (int, 3, 3),
    (float, 3, 3.0),
    (float, 0.5, 0.5),
    (bool, True, True),
    (str, "a", "a"),
    (int | None, None, None),
    (float | int, 3, 3),
    (float | None, 3, 3.0),
    (str | Path, "a", "a"),
    (Path, "a", Path("a")),
    (Literal["a", 1], 1, 1),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (list, ["a", 1], ["a", 1]),
    (Sequence[str], ["a"], ["a"]),
    (tuple[int, float], [1, 2], (1, 2.0)),
    (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
    (tuple, [1, "a"], (1, "a")),
    (dict[str, float], {"a": 1}, {"a": 1.0}),
    (Mapping[str, Any], {"a": [1]}, {"a": [1]}),
    (dict, {"a": 1}, {"a": 1}),
    (Any, "x", "x"),
    (object, "x", "x"),
]


@pytest.mark.parametrize(("kind", "given", "value"), FITS)
def test_values_fit_their_annotation(kind, given, value):
    def function(x):
        return x

    function.__annotations__["x"] = kind
    built = build(function, {"x": given})
    assert built == value
    assert type(built) is type(value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (int, True, "true, must be int"),
        (int, 0.5, "0.5, must be int"),
        (int, "3", '"3", must be int'),
        (float, "1e-3", '"1e-3", must be float'),
        (float, False, "false, must be float"),
        (float, float("nan"), "NaN, must be float"),
        (float, float("inf"), "Infinity, must be float"),
        (bool, 1, "1, must be bool"),
        (str, 1, "1, must be str"),
        (str, None, "null, must be str"),
        (int | None, "a", '"a", must be int | None'),
        (Literal["a", "b"], "c", "\"c\", must be one of 'a', 'b'"),
        (Literal[1], True, "true, must be one of 1"),
        (list[int], [1, "a"], '[1, "a"], must be list[int]'),
        (list[int], 3, "3, must be list[int]"),
        (Sequence[str], "abc", '"abc", must be Sequence[str]'),
        (tuple[int, int], [1], "[1], must be tuple[int, int]"),
        (dict[str, int], {"a": "b"}, '{"a": "b"}, must be dict[str, int]'),
        (dict[str, int], [1], "[1], must be dict[str, int]"),
        (Path, 3, "3, must be Path"),
        (Callable[[int], int], "relu", '"relu", must be Callable[[int], int]'),
        (Training, {"epochs": 1}, '{"epochs": 1}, must be Training'),
    ],
)
def test_values_that_do_not_fit_are_named_with_what_is_allowed(kind, given, problem):
    def function(x):
        return x

    function.__annotations__["x"] = kind
    assert problems_of(build, function, {"x": given}) == [f"x: {problem}"]


SCHEMA = {
    "seed": int,
    "uri": str | None,
    "model": Section(TABLE, given=("classes",)),
    "training": Training,
    "resources.theta": Training,
    "resources.final": Section(tiny, optional=True),
    "teacher": Section(TABLE, optional=True),
}
GOOD = {
    "seed": 0,
    "uri": None,
    "model": {"name": "net", "depth": 2},
    "training": {"epochs": 1},
    "resources": {"theta": {"epochs": 1}},
}


def test_a_good_config_passes():
    check(GOOD, SCHEMA)
    check({**GOOD, "teacher": {"name": "tiny"}}, SCHEMA)


def test_all_problems_of_all_sections_are_reported_at_once():
    config = {
        "sead": 3,
        "uri": 3,
        "model": {"name": "net", "classes": 3},
        "training": {"epochs": 0, "lr": -1},
        "resources": {"theta": 7, "fianl": {}},
        "teacher": [],
    }
    with pytest.raises(ConfigError) as raised:
        check(config, SCHEMA, source="run.yaml")
    assert str(raised.value).splitlines() == [
        "run.yaml: 10 problems",
        "  - sead: unknown (did you mean 'seed'?)",
        "  - seed: missing",
        "  - uri: 3, must be str | None",
        "  - model.classes: given by the program; leave it out",
        "  - model.depth: missing; int",
        "  - training.epochs: 0, must be positive",
        "  - training.lr: -1.0, must be positive",
        "  - resources.fianl: unknown (did you mean 'final'?)",
        "  - resources.theta: 7, must be a mapping",
        "  - teacher: [], must be a mapping",
    ]


def test_what_a_dataclass_says_of_the_whole_is_told_of_the_section():
    config = {"training": {"epochs": 1, "steps": [1, 2]}}
    assert problems_of(check, config, {"training": Training}) == ["training: 2 steps in 1 epochs"]


def test_a_section_that_the_program_judges_is_checked_for_its_types_alone():
    schema = {"training": Section(Training, judged=False)}
    check({"training": {"epochs": 0}}, schema)
    assert problems_of(check, {"training": {"epochs": "many"}}, schema) == [
        'training.epochs: "many", must be int'
    ]


def test_a_missing_group_of_sections_is_named():
    assert problems_of(check, {}, {"resources.theta": int}) == [
        "resources: null, must be a mapping of theta"
    ]


def test_what_is_filled_in_need_not_be_there_to_be_checked():
    check({}, {"training": Section(tiny), "seed": Value(int, 0)})


def test_a_value_with_a_default_is_checked_like_any_other():
    assert problems_of(check, {"seed": "a"}, {"seed": Value(int, 0)}) == ['seed: "a", must be int']


def test_an_argument_of_another_name_is_told_with_the_way_to_change_the_name():
    assert problems_of(check, {"model": {"name": "tiny", "depth": 3}}, {"model": TABLE}) == [
        "model.depth: unknown; known: width; it is an argument of net: for another name give the "
        "whole section, model={name: tiny, …}"
    ]
    assert problems_of(build, TABLE, {"name": "tiny", "depth": 3}) == [
        "depth: unknown; known: width; it is an argument of net: for another name give the whole "
        "section, {name: tiny, …}"
    ]


# ---------------------------------------------------------------------- what had another name


RENAMED = {
    "unlabelled.view": TABLE,
    "views": Renamed("unlabelled.view"),
    "training": Section(
        Training, renamed={"save_every_epochs": "epochs", "label_smoothing": "objective.smoothing"}
    ),
}


def test_old_keys_are_told_by_their_new_names():
    config = {
        "views": {"name": "tiny"},
        "unlabelled": {"view": {"name": "tiny"}},
        "training": {"epochs": 1, "save_every_epochs": 3, "label_smoothing": 0.1},
    }
    assert problems_of(check, config, RENAMED) == [
        "views: is called unlabelled.view now",
        "training.save_every_epochs: is called training.epochs now",
        "training.label_smoothing: is called objective.smoothing now",
    ]


def test_the_new_key_may_have_been_an_old_one_of_something_else():
    schema = {"training": Section(Training, renamed={"lr": "rate"})}
    check({"training": {"epochs": 1, "lr": 0.5}}, schema)


# ---------------------------------------------------------------------- rows of sections


@dataclass(frozen=True, kw_only=True)
class Comparison:
    over: str = "model"
    rivals: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "model": Section(TABLE, given=("classes",), renamed={"deep": "depth"}),
    "training": Training,
    "seed": int,
    "comparison": Section(Comparison, rows={"rivals": "over"}),
}
WITH_ROWS = {"model": {"name": "tiny"}, "training": {"epochs": 1}, "seed": 0}


def rows(**comparison: Any) -> dict[str, Any]:
    return {**WITH_ROWS, "comparison": comparison}


def test_rows_are_checked_like_the_section_that_they_are_of():
    rivals = {
        "loose": {"name": "tiny", "widht": 2},
        "nameless": {"depth": 2},
        "other": {"name": "poly"},
        "given": {"name": "net", "classes": 3, "deep": 4},
        "flat": 3,
    }
    assert problems_of(check, rows(rivals=rivals), ROWS) == [
        "comparison.rivals.loose.widht: unknown (did you mean 'width'?)",
        "comparison.rivals.nameless.name: missing; one of net, tiny",
        'comparison.rivals.other.name: "poly", unknown; known: net, tiny; comparison.over is '
        "model, so it is a section like model",
        "comparison.rivals.given.classes: given by the program; leave it out",
        "comparison.rivals.given.deep: is called comparison.rivals.given.depth now",
        "comparison.rivals.given.depth: missing; int",
        "comparison.rivals.flat: 3, must be a mapping",
    ]


def test_rows_of_a_dataclass_are_made_to_hear_what_it_refuses():
    rivals = {"none": {"epochs": 0}, "short": {"epochs": 1, "steps": [1, 2]}}
    assert problems_of(check, rows(over="training", rivals=rivals), ROWS) == [
        "comparison.rivals.none.epochs: 0, must be positive",
        "comparison.rivals.short: 2 steps in 1 epochs",
    ]


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        ("modell", "\"modell\", unknown (did you mean 'model'?)"),
        ("seed", '"seed", unknown; known: model, training'),
        ("comparison", '"comparison", unknown; known: model, training'),
        (3, "3, must be str"),
    ],
)
def test_rows_of_what_is_no_section_are_refused_with_those_that_there_are(over, problem):
    assert problems_of(check, rows(over=over), ROWS) == [f"comparison.over: {problem}"]


def test_rows_that_are_no_mapping_are_told_once():
    assert problems_of(check, rows(rivals=[1]), ROWS) == [
        "comparison.rivals: [1], must be dict[str, Any]"
    ]
