"""Options of a script's own: listed in --help, and short for what --set can say."""

import types

import pytest

from raykb.config import Value
from raykb.runtime import job
from raykb.runtime.command_line import answer

OPTIONS = {"pair": ("A,B", "two numbers at once")}


def script(session, ready):
    raise AssertionError("a dry run calls it not")


def expand(config, /, given):
    first, second = given["pair"].split(",")
    return [f"a={first}", f"b={int(second) + config['c']}"]


def launched(folder, capsys, *argv, status=0):
    """Return what a dry run of such a script says."""
    (folder / "config.yaml").write_text("c: 10\nsmoke: {c: 100}\n")
    code = job.launch(
        script,
        description="",
        default=folder / "config.yaml",
        schema={"a": Value(int, 1), "b": Value(int, 2), "c": Value(int, 3)},
        prepare=lambda config: types.SimpleNamespace(phases=[]),
        options=OPTIONS,
        expand=expand,
        argv=["--dry-run", *argv],
    )
    assert code == status
    said = capsys.readouterr()
    return said.out + said.err


def test_an_option_says_what_it_is_short_for_and_set_wins(tmp_path, capsys):
    assert "a: 1\nb: 2\nc: 10" in launched(tmp_path, capsys)
    assert "a: 5\nb: 16\nc: 10" in launched(tmp_path, capsys, "--pair", "5,6")
    assert "a: 5\nb: 106\nc: 100" in launched(tmp_path, capsys, "--pair=5,6", "--smoke")
    assert "a: 7\nb: 16\nc: 10" in launched(tmp_path, capsys, "--pair", "5,6", "--set", "a=7")


def test_what_an_option_refuses_refuses_the_run(tmp_path, capsys):
    said = launched(tmp_path, capsys, "--pair", "5", status=job.EXIT_REFUSED)
    assert "not enough values to unpack" in said


def test_an_option_is_in_the_help_and_no_other_script_has_it(capsys):
    with pytest.raises(SystemExit):
        answer("script.py", "", ["--help"], options=OPTIONS)
    assert "--pair A,B" in (said := capsys.readouterr().out)
    assert "two numbers at once" in said
    with pytest.raises(SystemExit):
        answer("script.py", "", ["--pair", "1,2"])
    assert "unrecognized arguments: --pair" in capsys.readouterr().err
