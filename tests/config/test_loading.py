from collections.abc import Mapping
from typing import Any

import pytest
from shared_config import problems_of

from raykb.config import Renamed, Section, Value, check, load, override

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


# ---------------------------------------------------------------------- load


def test_the_full_run_does_not_see_the_smoke_section(write):
    assert load(write(FILE), {}) == {
        "seed": 0,
        "data": {"name": "cifar10", "root": "/data", "download": False},
        "search": {"width": 40, "space": {"low": 0.1, "high": 0.9}},
        "optimizer": {"lr": 0.1, "decay": 1e-4},
    }


def test_smoke_merges_sections_and_replaces_those_with_a_name(write):
    config = load(write(FILE), {}, smoke=True)
    assert config["search"] == {"width": 2, "space": {"low": 0.5, "high": 0.9}}
    assert config["data"] == {"name": "sample"}
    assert "smoke" not in config


def test_smoke_may_only_touch_keys_that_exist(write):
    text = "search: {width: 40}\nsmoke: {search: {widht: 2}, sede: 1}"
    assert problems_of(load, write(text), {}, smoke=True) == [
        "smoke.search.widht: unknown (did you mean 'width'?)",
        "smoke.sede: unknown; known: search",
    ]
    assert load(write(text), {}) == {"search": {"width": 40}}


@pytest.mark.parametrize("text", ["a: 1", "a: 1\nsmoke: 3"])
def test_a_smoke_run_needs_a_smoke_section(write, text):
    assert (
        "must be a mapping of what a smoke run changes"
        in problems_of(load, write(text), {}, smoke=True)[0]
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
    (problem,) = problems_of(load, path, {})
    assert remedy in problem
    assert problem.startswith((f"{path}:2: ", f"{path}:3: no valid YAML"))


@pytest.mark.parametrize("value", ["1e-3", "no", "1:30", "010", "nan", "!!python/name:os.system"])
def test_traps_are_refused_on_the_command_line_too(value):
    (problem,) = problems_of(override, {"lr": 1.0}, {}, [f"lr={value}"])
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
    assert load(write(f"x: {text}"), {}) == {"x": value}
    assert override({"x": 3}, {}, [f"x={text}"]) == {"x": value}


def test_anchors_and_merge_keys_are_plain_yaml(write):
    text = "base: &base {a: 1, b: 2}\nnext: {<<: *base, b: 3}\nlist: [*base, *base]"
    assert load(write(text), {})["next"] == {"a": 1, "b": 3}


def test_all_traps_of_a_file_are_reported_together(write):
    path = write("a: 1e-3\nb: no\na: 012\n")
    assert [problem.split(": ")[0] for problem in problems_of(load, path, {})] == [
        f"{path}:1",
        f"{path}:2",
        f"{path}:3",
        f"{path}:3",
    ]


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "text", "a: 1\n---\nb: 2"])
def test_a_file_must_hold_one_mapping(write, text):
    assert len(problems_of(load, write(text), {})) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "No such file" in problems_of(load, tmp_path / "absent.yaml", {})[0]
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    assert "cannot be read" in problems_of(load, tmp_path / "latin.yaml", {})[0]


# ---------------------------------------------------------------------- overrides


def test_overrides_win_over_smoke_and_over_earlier_ones(write):
    sets = ["search.width=3", "search.space.low=0.2", "search.width=4", "data.name=cifar100"]
    config = load(write(FILE), {}, overrides=sets, smoke=True)
    assert config["search"] == {"width": 4, "space": {"low": 0.2, "high": 0.9}}
    assert config["data"] == {"name": "cifar100"}


def test_an_override_replaces_a_whole_section():
    config = {"data": {"name": "sample", "root": None}}
    assert override(config, {}, ["data={name: cifar10, download: true}"]) == {
        "data": {"name": "cifar10", "download": True}
    }
    assert config == {"data": {"name": "sample", "root": None}}


def test_an_override_leaves_the_given_config_alone():
    config = {"a": {"b": {"c": 1}, "d": 2}}
    assert override(config, {}, ["a.b.c=5"]) == {"a": {"b": {"c": 5}, "d": 2}}
    assert config == {"a": {"b": {"c": 1}, "d": 2}}


def test_an_override_may_hold_further_equals_signs():
    assert override({"note": ""}, {}, ["note=a=b"]) == {"note": "a=b"}


def test_all_overrides_that_cannot_be_applied_are_reported_together():
    config = {"objective": {"threshold": 0.9}, "seed": 0}
    sets = ["objective.treshold=1", "seed.x=1", "sede=1", "seed", "seed="]
    assert problems_of(override, config, {}, sets) == [
        "--set objective.treshold: unknown (did you mean 'threshold'?)",
        "--set seed.x: seed is 0, no section",
        "--set sede: unknown (did you mean 'seed'?)",
        "--set seed: no '='; write --set key.sub=value",
        "--set seed=: no value; write seed=null, or seed=\"''\"",
    ]


# ---------------------------------------------------------------------- what a file leaves out


def fixmatch(*, threshold: float = 0.95, weight: float = 1.0) -> None: ...


def freematch(*, momentum: float = 0.999, weight: float = 2.0) -> None: ...


def recipe(
    *, steps: int, epochs: int = 3, ranges: Mapping[str, int] = {"a": 1, "b": 2}
) -> None: ...


def compare(*, over: str = "method", rivals: Mapping[str, Any] = {}) -> None: ...


SCHEMA = {
    "method": Section({"fixmatch": fixmatch, "freematch": freematch}, renamed={"tau": "threshold"}),
    "views": Renamed("unlabelled.view"),
    "unlabelled.view": Section({"weak": lambda crop=0.1: None}, default="weak"),
    "recipe": recipe,
    "comparison": Section(compare, rows={"rivals": "over"}),
    "teacher": Section(recipe, optional=True),
    "seed": Value(int, 0),
}
SHORT = "method: {name: fixmatch}\nrecipe: {steps: 10}\n"


def test_any_argument_can_be_set_whether_the_file_has_it_or_not(write):
    sets = ["method.threshold=0.9", "unlabelled.view.crop=0.2", "seed=3", "comparison.over=recipe"]
    config = load(write(SHORT), SCHEMA, overrides=sets)
    assert config["method"] == {"name": "fixmatch", "threshold": 0.9, "weight": 1.0}
    assert config["unlabelled"] == {"view": {"name": "weak", "crop": 0.2}}
    assert (config["seed"], config["comparison"]["over"]) == (3, "recipe")


def test_what_has_no_default_can_be_set_too(write):
    config = load(write("method: {name: fixmatch}"), SCHEMA, overrides=["recipe.steps=5"])
    assert config["recipe"] == {"steps": 5, "epochs": 3, "ranges": {"a": 1, "b": 2}}
    config = load(write(SHORT), SCHEMA, overrides=["teacher.steps=5", "teacher.epochs=1"])
    assert config["teacher"] == {"steps": 5, "epochs": 1, "ranges": {"a": 1, "b": 2}}
    config = load(write("recipe: {steps: 1}"), SCHEMA, overrides=["method.name=freematch"])
    assert config["method"] == {"name": "freematch", "momentum": 0.999, "weight": 2.0}


def test_another_name_drops_the_defaults_of_the_one_before_and_brings_its_own(write):
    sets = ["method.name=freematch", "method.momentum=0.5"]
    config = load(write(SHORT), SCHEMA, overrides=sets)
    assert config["method"] == {"name": "freematch", "momentum": 0.5, "weight": 2.0}
    config = load(write(SHORT), SCHEMA, overrides=["method={name: freematch, weight: 3}"])
    assert config["method"] == {"name": "freematch", "momentum": 0.999, "weight": 3.0}


def test_another_name_keeps_what_the_file_says_itself(write):
    text = "method: {name: fixmatch, weight: 5.0}\nrecipe: {steps: 10}"
    config = load(write(text), SCHEMA, overrides=["method.name=freematch"])
    assert config["method"] == {"name": "freematch", "momentum": 0.999, "weight": 5.0}


def test_keys_of_the_name_before_cannot_be_set(write):
    sets = ["method.name=freematch", "method.threshold=0.9"]
    assert problems_of(load, write(SHORT), SCHEMA, overrides=sets) == [
        "--set method.threshold: unknown; known: momentum, name, weight"
    ]


def test_one_item_of_a_default_is_set_and_the_others_stay(write):
    config = load(write(SHORT), SCHEMA, overrides=["recipe.ranges.a=5"])
    assert config["recipe"]["ranges"] == {"a": 5, "b": 2}
    assert load(write(SHORT), SCHEMA)["recipe"]["ranges"] == {"a": 1, "b": 2}


def test_what_the_file_says_that_another_name_does_not_take_is_refused_with_the_way_out(write):
    whole = load(write(SHORT), SCHEMA)  # as a run keeps it: it says everything
    config = override(whole, SCHEMA, ["method.name=freematch"])
    (problem,) = problems_of(check, config, SCHEMA)
    assert problem == (
        "method.threshold: unknown; known: momentum, weight; it is an argument of fixmatch: for "
        "another name give the whole section, method={name: freematch, …}"
    )
    check(override(whole, SCHEMA, ["method={name: freematch}"]), SCHEMA)


def test_what_had_another_name_cannot_be_set_by_it(write):
    sets = ["views.crop=0.2", "method.tau=0.9"]
    assert problems_of(load, write(SHORT), SCHEMA, overrides=sets) == [
        "--set views.crop: is called unlabelled.view now",
        "--set method.tau: is called method.threshold now",
    ]


def test_a_smoke_run_may_change_what_the_file_leaves_out(write):
    smoke = "smoke: {recipe: {epochs: 2}, unlabelled: {view: {crop: 0.5}}, seed: 7, views: {}}"
    assert problems_of(load, write(SHORT + smoke), SCHEMA, smoke=True) == [
        "smoke.views: is called unlabelled.view now"
    ]
    config = load(write(SHORT + smoke.replace(", views: {}", "")), SCHEMA, smoke=True)
    assert config["recipe"]["epochs"] == 2
    assert config["unlabelled"]["view"] == {"name": "weak", "crop": 0.5}
    assert config["seed"] == 7


def test_rows_can_be_set_one_by_one_and_are_replaced_in_a_smoke_run(write):
    rivals = "comparison: {rivals: {a: {name: fixmatch}, b: {name: freematch}}}\n"
    smoke = "smoke: {comparison: {rivals: {c: {name: fixmatch}}}}"
    sets = ["comparison.rivals.a.threshold=0.5", "comparison.rivals.d={name: fixmatch}"]
    config = load(write(SHORT + rivals + smoke), SCHEMA, overrides=sets)
    found = {label: row.get("threshold") for label, row in config["comparison"]["rivals"].items()}
    assert found == {"a": 0.5, "b": None, "d": 0.95}
    config = load(write(SHORT + rivals + smoke), SCHEMA, smoke=True)
    assert list(config["comparison"]["rivals"]) == ["c"]


def test_a_new_row_is_a_whole_section(write):
    sets = ["comparison.rivals.a.name=fixmatch"]
    assert problems_of(load, write(SHORT), SCHEMA, overrides=sets) == [
        "--set comparison.rivals.a.name: unknown; known: nothing"
    ]
