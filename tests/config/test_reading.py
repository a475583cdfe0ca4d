"""What YAML could do to a program, and what becomes of it."""

import pytest
from shared_config import problems_of

from raykb.config import load, override, reading
from raykb.config.reading import DEEPEST, MOST_NODES, read


def laughs(levels: int, width: int) -> str:
    """Return lists of lists of aliases: few bytes that stand for width ** levels values."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * width) + "]")
    return "\n".join(lines)


def test_aliases_that_stand_for_too_many_values_are_refused(write):
    text = laughs(7, 5)
    assert len(text) < 236
    path = write(text)
    (problem,) = problems_of(load, path, {})
    assert problem.startswith(f"{path}:6: no valid YAML: ")
    assert f"more than {MOST_NODES:,} values, its aliases written out" in problem


def test_many_merged_aliases_are_refused_too(write):
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(10)) + "}"]
    for level in range(1, 6):
        lines.append(f"a{level}: &a{level} {{<<: [" + ", ".join([f"*a{level - 1}"] * 9) + "]}")
    (problem,) = problems_of(load, write("\n".join(lines)), {})
    assert f"more than {MOST_NODES:,} values" in problem


def test_the_values_of_a_file_are_counted_as_they_are_written(monkeypatch):
    monkeypatch.setattr(reading, "MOST_NODES", 50)
    whole = 49  # and the list itself
    assert read("[" + ", ".join(["1"] * whole) + "]") == ([1] * whole, [])
    value, problems = read("[" + ", ".join(["1"] * (whole + 1)) + "]")
    assert value is None
    assert len(problems) == 1


def test_an_alias_to_what_it_stands_in_does_not_hide_the_others(write):
    text = "\n".join(f"a{n}: &a{n} [{f'*a{n}, ' + f'*a{n - 1}, ' * 9 * (n > 0)}]" for n in range(9))
    (problem,) = problems_of(load, write(text), {})
    assert problem.endswith("no valid YAML: an alias to what it stands in; write the value out")


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ("{a: ", "}"), ("[[], ", "]")])
def test_depth_has_a_limit(begin: str, end: str):
    depth = DEEPEST - 1  # and the value inside
    value, problems = read(begin * depth + "1" + end * depth)
    assert not problems
    assert value is not None
    for text in (begin * (depth + 1) + "1" + end * (depth + 1), begin * 100_000):
        value, ((line, problem),) = read(text)
        assert (value, line) == (None, 1)
        assert problem == f"no valid YAML: more than {DEEPEST} levels of lists and mappings"


def test_depth_is_limited_on_the_command_line_and_in_blocks(write):
    (problem,) = problems_of(override, {"x": 1}, {}, ["x=" + "[" * 5000])
    assert problem.startswith(f"--set x: no valid YAML: more than {DEEPEST} levels")
    text = "\n".join("  " * depth + "a:" for depth in range(DEEPEST + 1))
    path = write(text)
    (problem,) = problems_of(load, path, {})
    assert problem.startswith(f"{path}:{DEEPEST}: no valid YAML: more than {DEEPEST} levels")


@pytest.mark.parametrize(
    "text",
    ["a\x07b", "a: \ud800", "!!bool maybe", "!!int abc", "!!float x", "0x_", "0b_", "9" * 5000],
)
def test_what_cannot_be_a_value_is_no_valid_yaml(text: str):
    value, ((line, problem),) = read(text)
    assert (value, line) == (None, 1)
    assert problem.startswith("no valid YAML: ")
