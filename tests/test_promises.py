"""Each promise of promises.yaml can be broken as the list says; some are, and their tests fail."""

import shlex

import pytest
from promises import ROOT, copied, outcome, promises


@pytest.mark.parametrize("promise", promises(), ids=lambda each: each.promise)
def test_the_change_that_breaks_a_promise_fits_the_code_and_has_a_test(promise):
    broken = promise.broken((ROOT / promise.file).read_text())
    compile(broken, promise.file, "exec")
    file, flag, name = shlex.split(promise.test)
    assert flag == "-k"
    assert f"def {name}" in (ROOT / file).read_text()


def test_no_promise_is_there_twice():
    names = [each.promise for each in promises()]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.parametrize("promise", promises()[::6], ids=lambda each: each.promise)
def test_a_broken_promise_makes_its_test_fail(promise, tmp_path):
    assert outcome(promise, copied(tmp_path)) == "fails"
