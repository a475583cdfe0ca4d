import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from raykb.config import ConfigError, Section, build, check, diff, dump, flatten, load, override

FILE = """
seed: 0
data: {name: cifar10, root: /data, download: false}
search:
  width: 40
  space: {low: 0.1, high: 0.9}
optimizer: {lr: 0.1, decay: 1.0e-4}
smoke:
  search: {width: 2, space: {low: 0.5}}
  data: {name: sample}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def problems_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        function(*args, **kwargs)
    return list(raised.value.problems)


# ---------------------------------------------------------------------- load


def test_the_full_run_does_not_see_the_smoke_section(write):
    assert load(write(FILE)) == {
        "seed": 0,
        "data": {"name": "cifar10", "root": "/data", "download": False},
        "search": {"width": 40, "space": {"low": 0.1, "high": 0.9}},
        "optimizer": {"lr": 0.1, "decay": 1e-4},
    }


def test_smoke_merges_sections_and_replaces_those_with_a_name(write):
    config = load(write(FILE), smoke=True)
    assert config["search"] == {"width": 2, "space": {"low": 0.5, "high": 0.9}}
    assert config["data"] == {"name": "sample"}
    assert "smoke" not in config


def test_smoke_may_only_touch_keys_that_exist(write):
    text = "search: {width: 40}\nsmoke: {search: {widht: 2}, sede: 1}"
    assert problems_of(load, write(text), smoke=True) == [
        "smoke.search.widht: unknown (did you mean 'width'?); a change needs a key to change",
        "smoke.sede: unknown; known: search; a change needs a key to change",
    ]
    assert load(write(text)) == {"search": {"width": 40}}


@pytest.mark.parametrize("text", ["a: 1", "a: 1\nsmoke: 3"])
def test_a_smoke_run_needs_a_smoke_section(write, text):
    assert (
        "must be a mapping of what a smoke run changes"
        in problems_of(load, write(text), smoke=True)[0]
    )


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("1e-3", "write 1.0e-3"),
        ("-2e5", "write -2.0e+5"),
        ("1.5E3", "write 1.5e+3"),
        ("1.e4", "write 1.e+4"),
        (".5e3", "write .5e+3"),
        ("-.5", "a digit before the point"),
        ("no", "write false"),
        ("Off", "write false"),
        ("YES", "write true"),
        ("on", "write true"),
        ("1:30", "base 60"),
        ("12:30:45.5", "base 60"),
        ("012", "without leading zeros"),
        ("010", "without leading zeros"),
        ("08", "without leading zeros"),
        ("2026-01-01", "put it in quotes"),
        ("2026-01-01 12:00:00", "put it in quotes"),
        ("nan", "not a finite number"),
        (".NaN", "not a finite number"),
        ("-.inf", "not a finite number"),
        ("inf", "not a finite number"),
        ("None", "write null"),
        ("!!python/object/apply:os.system [ls]", "must be one of plain YAML"),
        ("!!binary aGk=", "must be one of plain YAML"),
        ("!mine {a: 1}", "must be one of plain YAML"),
        ("!!set {a, b}", "must be one of plain YAML"),
        ("{a: 1, a: 2}", "a: given twice, first in line 2"),
        ("{no: 1}", "write false"),
        ("{3: 1}", "a key must be text"),
        ("&here [*here]", "an alias to what it stands in"),
        ("{a: 1", "no valid YAML"),
        ("*nowhere", "no valid YAML: found undefined alias"),
    ],
)
def test_traps_are_refused_in_the_file_with_line_and_remedy(write, value, remedy):
    path = write(f"first: 1\nlr: {value}\n")
    (problem,) = problems_of(load, path)
    assert remedy in problem
    assert problem.startswith((f"{path}:2: ", f"{path}:3: no valid YAML"))


@pytest.mark.parametrize("value", ["1e-3", "no", "1:30", "010", "nan", "!!python/name:os.system"])
def test_traps_are_refused_on_the_command_line_too(value):
    (problem,) = problems_of(override, {"lr": 1.0}, [f"lr={value}"])
    assert problem.startswith("--set lr: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.0e-3", 1e-3),
        ("1.0e+3", 1e3),
        ("-1.5E-3", -1.5e-3),
        ("0", 0),
        ("0.5", 0.5),
        ("0x10", 16),
        ("1_000", 1000),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("none", "none"),
        ("'no'", "no"),
        ('"1e-3"', "1e-3"),
        ("split-0", "split-0"),
        ("[1, 2]", [1, 2]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_plain_values_are_read_alike_in_file_and_command_line(write, text, value):
    assert load(write(f"x: {text}")) == {"x": value}
    assert override({"x": 3}, [f"x={text}"]) == {"x": value}


def test_anchors_and_merge_keys_are_plain_yaml(write):
    text = "base: &base {a: 1, b: 2}\nnext: {<<: *base, b: 3}\nlist: [*base, *base]"
    assert load(write(text))["next"] == {"a": 1, "b": 3}


def test_all_traps_of_a_file_are_reported_together(write):
    path = write("a: 1e-3\nb: no\na: 012\n")
    assert [problem.split(": ")[0] for problem in problems_of(load, path)] == [
        f"{path}:1",
        f"{path}:2",
        f"{path}:3",
        f"{path}:3",
    ]


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "text", "a: 1\n---\nb: 2"])
def test_a_file_must_hold_one_mapping(write, text):
    assert len(problems_of(load, write(text))) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "No such file" in problems_of(load, tmp_path / "absent.yaml")[0]
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    assert "cannot be read" in problems_of(load, tmp_path / "latin.yaml")[0]


# ---------------------------------------------------------------------- overrides


def test_overrides_win_over_smoke_and_over_earlier_ones(write):
    sets = ["search.width=3", "search.space.low=0.2", "search.width=4", "data.name=cifar100"]
    config = load(write(FILE), overrides=sets, smoke=True)
    assert config["search"] == {"width": 4, "space": {"low": 0.2, "high": 0.9}}
    assert config["data"] == {"name": "cifar100"}


def test_an_override_replaces_a_whole_section():
    config = {"data": {"name": "sample", "root": None}}
    assert override(config, ["data={name: cifar10, download: true}"]) == {
        "data": {"name": "cifar10", "download": True}
    }
    assert config == {"data": {"name": "sample", "root": None}}


def test_an_override_leaves_the_given_config_alone():
    config = {"a": {"b": {"c": 1}, "d": 2}}
    assert override(config, ["a.b.c=5"]) == {"a": {"b": {"c": 5}, "d": 2}}
    assert config == {"a": {"b": {"c": 1}, "d": 2}}


def test_an_override_may_hold_further_equals_signs():
    assert override({"note": ""}, ["note=a=b"]) == {"note": "a=b"}


def test_all_overrides_that_cannot_be_applied_are_reported_together():
    config = {"objective": {"threshold": 0.9}, "seed": 0}
    sets = ["objective.treshold=1", "seed.x=1", "sede=1", "seed", "seed="]
    whole = "keys that the file leaves out need the whole section: objective={…}"
    assert problems_of(override, config, sets) == [
        f"--set objective.treshold: unknown (did you mean 'threshold'?); {whole}",
        "--set seed.x: seed is 0, no section",
        "--set sede: unknown (did you mean 'seed'?)",
        "--set seed: no '='; write --set key.sub=value",
        "--set seed=: no value; write seed=null, or seed=\"''\"",
    ]


# ---------------------------------------------------------------------- build and check


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
        "  - resources.fianl: unknown (did you mean 'final'?)",
        "  - resources.theta: 7, must be a mapping",
        "  - seed: missing",
        "  - uri: 3, must be str | None",
        "  - model.classes: given by the program; leave it out",
        "  - model.depth: missing; int",
        "  - training.epochs: 0, must be positive",
        "  - training.lr: -1.0, must be positive",
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


def test_arguments_left_from_another_name_are_reported(write):
    schema = {"data": {"cifar10": lambda root, download=False: None, "sample": lambda: None}}
    config = override({"data": {"name": "cifar10", "root": "/data"}}, ["data.name=sample"])
    assert problems_of(check, config, schema) == ["data.root: unknown; known: nothing"]


def test_the_error_survives_a_pickle():
    error = ConfigError("run.yaml", ["a: missing"])
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "run.yaml: 1 problem\n  - a: missing"


# ---------------------------------------------------------------------- writing


def test_flatten_gives_text_by_dotted_key():
    config = {"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"], "f": {}, "g": "no", "h": 1e-4}
    assert flatten(config) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": '[1, "x"]',
        "f": "{}",
        "g": "no",
        "h": "0.0001",
    }
    assert flatten({"a": 1}, prefix="run.") == {"run.a": "1"}


def test_what_is_dumped_is_read_back_as_it_was(write):
    shared = {"x": 1}
    texts = ["1e-3", "no", "None", "08", "012", "1:30", "nan", "2026-01-01", "", "null", "é", "3"]
    config = {"texts": texts, "b": shared, "c": shared, "f": 1e-5, "g": -3e20, "t": (1, 2)}
    assert load(write(dump(config))) == {**config, "t": [1, 2]}
    assert "&" not in dump(config)


def test_dump_keeps_the_order_and_plain_yaml_reads_it():
    config = {"z": 1, "a": {"q": True, "b": None}}
    assert list(yaml.safe_load(dump(config))) == ["z", "a"]
    assert yaml.safe_load(dump(config)) == config


def test_diff_reads_aloud():
    old = {"search": {"width": 40, "rounds": 2}, "seed": 0}
    new = {"search": {"width": 80}, "seed": 0, "split": {"k": [1]}}
    assert diff(old, new) == [
        "search.rounds: 2 -> (absent)",
        "search.width: 40 -> 80",
        "split.k: (absent) -> [1]",
    ]
    assert diff(old, old) == []
    assert diff(old, new, leaving_out=["search.rounds", "split", "see"]) == [
        "search.width: 40 -> 80"
    ]
    assert diff(old, new, leaving_out=["search", "split"]) == []
