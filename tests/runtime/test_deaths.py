"""A writer killed between any two operations, or inside a write, leaves old or new and no half."""

import itertools

import pyarrow.fs
import pytest
from shared_deaths import (
    AFTER,
    BEFORE,
    BETWEEN,
    STORAGES,
    WRITES,
    Counted,
    Writers,
    begun,
    found,
    remote,
    save,
)

from raykb.engine import checkpoint

SIZES = {"replace": (0, 1, 4999), "begin": (0, 4999), "append": (15, 27), "save": (0, 900)}


@pytest.fixture(scope="module")
def writers():
    with Writers() as started:
        yield started


def swept(storage, folder):
    """Have the next start look at what is left; return how much of dead writers there was."""
    told, uncommitted = [], checkpoint.uncommitted(storage)
    checkpoint.sweep(storage, told.append)
    assert len(told) == len(uncommitted)
    count = len(storage.sweep()) + len(told)
    assert not list(folder.rglob("*.tmp"))
    assert not checkpoint.uncommitted(storage)
    return count


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("kind", STORAGES)
def test_a_writer_that_is_killed_leaves_the_old_or_the_new(writers, tmp_path, kind, name):
    fates, left = [], 0
    for at in itertools.count():
        folder = tmp_path / f"{at}"
        storage = STORAGES[kind](str(folder))
        begun(storage)
        was_killed = writers.killed(kind, folder, name, at=at)
        state = found(storage)
        assert {**state, name: None} == {**BEFORE, name: None}
        fates.append(state[name])
        left += swept(storage, folder)
        assert found(storage) == state
        if not was_killed:
            break
    assert at > 1  # writers were killed, at each operation that there is
    assert (fates[0], fates[-1]) == (BEFORE[name], AFTER[name])
    states = [state for state, _ in itertools.groupby(fates)]
    assert states in ([BEFORE[name], AFTER[name]], [BEFORE[name], BETWEEN.get(name), AFTER[name]])
    assert left or (kind, name) in {("local", "append"), ("local", "rename")}


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes]
)
@pytest.mark.parametrize("kind", STORAGES)
def test_a_writer_that_is_killed_inside_a_write_leaves_the_old(writers, tmp_path, kind, name, size):
    storage = STORAGES[kind](str(tmp_path))
    begun(storage)
    if name == "append" and kind != "local":  # where a record is an object
        size -= 15
    assert writers.killed(kind, tmp_path, name, size=size)
    assert found(storage) == BEFORE
    swept(storage, tmp_path)
    storage.append("log", {"number": 7})
    assert [record["number"] for record in storage.records("log")] == [0, 7]


class Killed(BaseException):
    """Stands for the death of a process whose memory is the store."""


@pytest.mark.parametrize("name", ["replace", "save"])
def test_in_a_store_in_memory_it_is_the_same(tmp_path, name):
    for life in itertools.count():
        storage = remote("/run")
        files = storage._files = pyarrow.fs._MockFileSystem()
        begun(storage)
        done = iter(range(life))

        def count(done=done):
            if next(done, None) is None:
                raise Killed

        storage._files = Counted(files, count)
        try:
            WRITES[name](storage)
        except Killed:
            ended = False
        else:
            ended = True
        storage._files = files
        assert found(storage)[name] in (BEFORE[name], AFTER[name])
        if ended:
            break
    assert life > 4
    assert found(storage)[name] == AFTER[name]


def test_a_checkpoint_that_is_not_read_as_it_was_written_costs_no_older_one(tmp_path):
    storage = STORAGES["local"](str(tmp_path))
    begun(storage)

    class Losing:
        """A disk that loses the last byte of what has a name, and says nothing."""

        def __init__(self, name):
            self._name = name

        def __getattr__(self, name):
            return getattr(storage, name)

        def write(self, name, data):
            storage.write(name, data[:-1] if name.endswith(self._name) else data)

    for name in ("part-00001.pt", "manifest.json"):
        with pytest.raises(checkpoint.Damaged, match=rf"{name}: is not what was written"):
            save(Losing(name))
        assert storage.folders() == ["a", "step-00000001", "step-00000002", "step-00000003"]
        assert checkpoint.decode(checkpoint.newest(storage)[0])["step"] == 2
        storage.remove("step-00000003.corrupt")
