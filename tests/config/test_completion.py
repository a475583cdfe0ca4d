import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from raykb.config import (
    Renamed,
    Section,
    Value,
    build,
    check,
    complete,
    dump,
    load,
    override,
    unwritable,
)


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Settings:
    epochs: int = 3
    rate: float = 1
    steps: tuple[float, ...] = (1, 0.5)
    names: list[str] = field(default_factory=lambda: ["a"])
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"x": (0, 1)})
    folder: Path = Path("data/x")
    clip: float | None = None
    kind: Literal["a", "b"] = "b"


WHOLE = {
    "epochs": 3,
    "rate": 1.0,
    "steps": [1.0, 0.5],
    "names": ["a"],
    "bounds": {"x": [0, 1]},
    "folder": "data/x",
    "clip": None,
    "kind": "b",
}


def net(depth: int, widen: float = 1.0, *, classes: int = 10) -> None: ...


def tiny(*, width: int = 1) -> str:
    return f"tiny {width}"


TABLE = {"net": net, "tiny": tiny}


def completed(written: Any, entry: Any) -> Any:
    return complete({"it": written}, {"it": entry})["it"]


def test_defaults_are_filled_in_as_plain_yaml():
    whole = complete({}, {"settings": Settings})
    assert whole == {"settings": WHOLE}
    assert list(whole["settings"]) == list(WHOLE)
    assert build(Settings, whole["settings"]) == Settings()


def test_what_is_written_stays_in_the_form_of_its_annotation():
    written = {"clip": 2, "epochs": 5, "steps": [3]}
    changed = {"clip": 2.0, "epochs": 5, "steps": [3.0]}
    assert completed(written, Settings) == WHOLE | changed
    assert str(completed(written, Settings)["clip"]) == "2.0"


def test_what_is_wrong_stays_for_check_to_say():
    for written in (3, None, [], {"epochs": "many", "epoch": 1}):
        whole = completed(written, Settings)
        assert whole == (WHOLE | written if isinstance(written, dict) else written)
    for written in ({}, {"name": "nett"}, {"name": 3, "depth": 2}, {"depth": 2}):
        assert completed(written, TABLE) == written
    assert complete({"other": 1}, {}) == {"other": 1}


def test_the_name_decides_which_defaults_there_are():
    assert completed({"name": "tiny"}, TABLE) == {"name": "tiny", "width": 1}
    assert completed({"depth": 2, "name": "net"}, TABLE) == {
        "name": "net",
        "depth": 2,
        "widen": 1.0,
        "classes": 10,
    }
    assert completed({}, partial(tiny, width=4)) == {"width": 4}


def test_what_the_program_gives_is_not_filled_in():
    assert completed({"name": "net"}, Section(TABLE, given=("classes", "depth"))) == {
        "name": "net",
        "widen": 1.0,
    }


def test_sections_that_need_nothing_may_be_left_out():
    schema = {
        "settings": Settings,
        "resources.theta": tiny,
        "resources.final": Section(tiny, optional=True),
        "model": Section(TABLE, default="tiny"),
        "seed": Value(int, 0),
        "decay": Value(float | None, 1),
    }
    assert complete({}, schema) == {
        "settings": WHOLE,
        "resources": {"theta": {"width": 1}},
        "model": {"name": "tiny", "width": 1},
        "seed": 0,
        "decay": 1.0,
    }
    assert complete({"model": {"width": 3}}, schema)["model"] == {"name": "tiny", "width": 3}


def test_sections_that_need_something_stay_away():
    schema = {
        "model": TABLE,
        "other": Section(TABLE, default="net"),
        "deep.net": net,
        "seed": int,
        "old": Renamed("model"),
    }
    assert complete({}, schema) == {}
    assert complete({"deep": {}}, schema) == {"deep": {}}
    assert complete({}, {"net": Section(net, given=("depth",))}) == {
        "net": {"widen": 1.0, "classes": 10}
    }


def test_a_whole_configuration_is_completed_to_itself_and_leaves_what_it_is_made_of_alone():
    schema = {"seed": Value(int, 0), "settings": Settings, "model": TABLE}
    written = {"model": {"name": "tiny"}, "settings": {"bounds": {}}}
    whole = complete(written, schema)
    assert list(whole) == list(schema)
    assert complete(whole, schema) == override(whole, schema) == whole
    assert written == {"model": {"name": "tiny"}, "settings": {"bounds": {}}}
    whole["settings"]["names"].append("b")
    assert complete(written, schema)["settings"]["names"] == ["a"]


def test_a_whole_configuration_is_read_back_from_what_is_dumped(tmp_path):
    schema = {"settings": Settings, "model": Section(TABLE, default="tiny")}
    whole = complete({}, schema)
    (tmp_path / "whole.yaml").write_text(dump(whole))
    assert load(tmp_path / "whole.yaml", schema) == load(tmp_path / "whole.yaml", {}) == whole


def test_keys_that_the_code_has_gained_since_get_their_defaults():
    def before(*, a: int = 1) -> None: ...

    def after(*, a: int = 2, b: int = 3) -> None: ...

    stored = complete({}, {"it": before})
    assert complete(stored, {"it": after}) == {"it": {"a": 1, "b": 3}}


# ---------------------------------------------------------------------- what YAML cannot say


def test_defaults_without_a_form_in_yaml_are_left_out_and_listed():
    def odd(
        *,
        needed: int,
        colour: Colour = Colour.RED,
        call: Callable[[int], int] = abs,
        far: float = float("inf"),
        inner: Settings = Settings(),
        several: Sequence[Any] = (1, abs),
        wrong: int = "a",  # type: ignore[assignment]
        tell: Any = abs,
        fine: int = 1,
    ) -> None: ...

    assert completed({"needed": 1}, odd) == {"needed": 1, "fine": 1}
    names = ["colour", "call", "far", "inner", "several", "wrong"]
    schema = {"a.b": Section(odd, given=("tell",)), "c": TABLE | {"odd": odd}, "d": Settings}
    assert unwritable(schema) == [f"a.b.{name}" for name in names] + [
        f"c.odd.{name}" for name in [*names, "tell"]
    ]
    assert unwritable({"seed": int, "x": Value(int, 0), "old": Renamed("x")}) == []


# ---------------------------------------------------------------------- rows of sections


@dataclass(frozen=True, kw_only=True)
class Comparison:
    over: str = "model"
    seeds: int = 1
    rivals: dict[str, dict[str, Any]] = field(default_factory=dict)


ROWS = {
    "model": Section(TABLE, default="tiny", given=("classes",)),
    "data": Settings,
    "comparison": Section(Comparison, rows={"rivals": "over"}),
}


def test_rows_are_completed_like_the_section_that_they_are_of():
    rivals = {"b": {"name": "net", "depth": 3}, "a": {"width": 2}, "flat": 3}
    whole = complete({"comparison": {"rivals": rivals}}, ROWS)["comparison"]
    assert whole == {
        "over": "model",
        "seeds": 1,
        "rivals": {
            "b": {"name": "net", "depth": 3, "widen": 1.0},
            "a": {"name": "tiny", "width": 2},
            "flat": 3,
        },
    }
    assert list(whole["rivals"]) == ["b", "a", "flat"]


def test_rows_of_a_section_without_a_name_are_keyword_arguments():
    comparison = {"over": "data", "rivals": {"long": {"epochs": 9}, "as it is": {}}}
    config = complete({"comparison": comparison}, ROWS)
    assert config["comparison"]["rivals"] == {"long": WHOLE | {"epochs": 9}, "as it is": WHOLE}
    check(config, ROWS)


@pytest.mark.parametrize("over", ["comparison", "modell", 3, None])
def test_rows_of_what_is_no_section_are_left_as_they_are(over):
    comparison = {"over": over, "rivals": {"a": {"width": 2}}}
    assert complete({"comparison": comparison}, ROWS)["comparison"]["rivals"] == {"a": {"width": 2}}


def test_settings_are_whole_in_the_order_of_their_signature():
    fields = [one.name for one in dataclasses.fields(Settings)]
    assert list(completed({"kind": "a", "epochs": 1}, Settings)) == fields


# ---------------------------------------------------------------------- what follows from elsewhere


def size_of(config):
    """The data say how many classes there are, and how deep a network they want."""
    data = config.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return {"deep": {"depth": 9}, "wide": {"depth": 2, "widen": 3.0}}.get(name, {})


def named(name: str = "deep") -> None: ...


DERIVED = {
    "data": named,
    "net": Section(TABLE, default="net", given=("classes",), derived=size_of),
}


def test_what_follows_from_another_section_comes_before_the_constructors_default():
    assert complete({"data": {"name": "deep"}, "net": {}}, DERIVED)["net"] == {
        "name": "net",
        "depth": 9,
        "widen": 1.0,
    }
    assert complete({"data": {"name": "wide"}, "net": {"depth": 5}}, DERIVED)["net"] == {
        "name": "net",
        "depth": 5,
        "widen": 3.0,
    }


def test_a_section_of_which_all_follows_may_be_left_out_and_else_is_missed():
    assert complete({"data": {"name": "wide"}}, DERIVED)["net"]["depth"] == 2
    assert "net" not in complete({"data": {"name": "unknown"}}, DERIVED)
    with pytest.raises(ValueError, match="net"):
        check({"data": {"name": "unknown"}}, DERIVED)


def test_what_follows_is_of_what_is_set_and_only_of_arguments_that_there_are():
    written = {"data": {"name": "deep"}}
    assert override(written, DERIVED, ["data.name=wide"])["net"]["widen"] == 3.0
    assert override(written, DERIVED, ["net.name=tiny"])["net"] == {"name": "tiny", "width": 1}
    assert override(written, DERIVED, ["net.depth=7"])["net"]["depth"] == 7


def test_a_run_goes_on_with_what_followed_when_it_began():
    whole = complete({"data": {"name": "deep"}}, DERIVED)
    assert complete(whole, DERIVED) == whole
    assert override(whole, DERIVED, ["data.name=wide"])["net"]["depth"] == 9
