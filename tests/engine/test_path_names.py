"""Names that become paths stay where they belong, in a file system and in a URI."""

import pytest

from raykb.engine.names import LONGEST, check_name, check_part, check_path

NO_PARTS = {
    "": "is empty",
    ".": "begins with a dot",
    "..": "begins with a dot",
    ".lock": "begins with a dot",
    "a/b": "has / in it",
    "a\\b": r"has \\ in it",
    "a?x": r"has \? in it",
    "a#7": "has # in it",
    "a%2e": "has % in it",
    "<a>": "has < and > in it",
    "a\nb": "do not print",
    "a\0b": "do not print",
    "a\u202eb": "do not print",
    "a\udc80": "do not print",
    " a": "space around it",
    "é" * (LONGEST // 2) + "a": f"is longer than {LONGEST} bytes",
}


@pytest.mark.parametrize("name", NO_PARTS)
def test_what_is_no_part_of_a_path_is_refused_with_the_reason_and_a_name_that_can_be_taken(name):
    for check in (check_part, check_name):
        with pytest.raises(ValueError, match=f"rivals: .*{NO_PARTS[name]}") as caught:
            check(name, "rivals")
        instead = str(caught.value).split("write '")[1].split("'")[0]
        assert check(instead, "rivals") == instead


@pytest.mark.parametrize("name", [None, 7, ["a"]])
def test_what_is_no_text_is_refused(name):
    with pytest.raises(ValueError, match="is no text"):
        check_part(name, "name of a part")


@pytest.mark.parametrize("name", ["run.json", "Run.JSON", "lease", "Tracking", "a.pt", "log.jsonl"])
def test_names_of_a_run_s_own_files_are_no_labels(name):
    assert check_part(name, "file") == name
    with pytest.raises(ValueError, match="is kept for files of the run") as caught:
        check_name(name, "rivals")
    instead = str(caught.value).split("write '")[1].split("'")[0]
    assert check_name(instead, "rivals") == instead


@pytest.mark.parametrize(
    "name",
    ["none", "fixmatch", "v1.5", "lr=0.1,wd=1e-4", "größe (2)", "模型", "é" * (LONGEST // 2)],
)
def test_a_plain_name_comes_back(name):
    assert check_name(name, "rivals") == name


def test_a_path_is_such_parts():
    assert check_path("final/none/seed-0", "name") == "final/none/seed-0"
    for name in ("final/../x", "/etc", "a//b", "a/", "", ".."):
        with pytest.raises(ValueError, match="name: '"):
            check_path(name, "name")
