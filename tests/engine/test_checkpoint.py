"""A checkpoint is whole or it does not count, wherever its writer was killed."""

import json
import os
from pathlib import Path

import pytest
import torch

from raykb.engine import checkpoint
from raykb.runtime.storage import LocalStorage


class Killed(BaseException):
    """Stands for the death of the process at a file operation."""


class Mortal:
    """A storage that dies at its k-th operation, or at half of it."""

    def __init__(self, storage, life):
        self._storage, self._life = storage, life

    def __getattr__(self, name):
        operation = getattr(self._storage, name)

        def counted(*arguments):
            self._life -= 1
            if self._life < 0:
                raise Killed
            return operation(*arguments)

        return counted


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "run")


def save(storage, step, ranks=2, keep=2):
    parts = [
        checkpoint.write_part(storage, {"step": step, "rank": rank}, step=step, rank=rank)
        for rank in range(ranks)
    ]
    checkpoint.commit(storage, parts, step=step, keep=keep)


def found(storage):
    parts = checkpoint.newest(storage)
    return None if parts is None else [checkpoint.decode(part) for part in parts]


def test_the_newest_is_found_with_the_parts_of_all_ranks(storage):
    assert found(storage) is None
    for step in (1, 2, 10):
        save(storage, step)
    assert found(storage) == [{"step": 10, "rank": 0}, {"step": 10, "rank": 1}]


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_stay(storage, keep):
    for step in range(1, 6):
        save(storage, step, keep=keep)
    wanted = [f"step-{step:08d}" for step in range(6 - keep, 6)]
    assert storage.folders() == wanted


@pytest.mark.parametrize("life", range(14))
def test_a_writer_killed_at_any_operation_leaves_the_checkpoint_before(storage, life):
    save(storage, 1, keep=1)
    operations = 0
    try:
        save(Mortal(storage, life), 2, keep=1)
        operations = life
    except Killed:
        pass
    state = found(storage)
    assert state is not None
    assert state[0]["step"] in (1, 2)
    assert not operations or state[0]["step"] == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "manifest"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(storage, damage, caplog):
    save(storage, 1)
    save(storage, 2)
    folder = Path(storage.uri) / "step-00000002"
    part = folder / "part-00001.pt"
    data = bytearray(part.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif damage == "cut":
        part.write_bytes(data[:-10])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "gone":
        part.unlink()
    else:
        (folder / "manifest.json").write_text('{"schema": 1, "par')
    assert found(storage)[0]["step"] == 1
    name = "manifest.json" if damage == "manifest" else "part-00001.pt"
    assert f"step-00000002 does not verify (step-00000002/{name}: " in caplog.text
    assert storage.folders() == ["step-00000001", "step-00000002.corrupt"]
    assert found(storage)[0]["step"] == 1


def test_a_part_cut_at_any_tenth_byte_or_with_any_byte_flipped_is_not_taken(storage, tmp_path):
    save(storage, 1)
    save(storage, 2)
    folder = Path(storage.uri) / "step-00000002"
    part = folder / "part-00001.pt"
    whole = part.read_bytes()
    cuts = [whole[:length] for length in range(0, len(whole), 10)]
    flips = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        for place in range(0, len(whole), 7)
    ]
    for damaged in [*cuts, *flips]:
        assert damaged != whole
        part.write_bytes(damaged)
        assert found(storage)[0]["step"] == 1
        storage.rename("step-00000002.corrupt", "step-00000002")
    part.write_bytes(whole)
    assert found(storage)[0]["step"] == 2


def test_a_clock_that_jumps_changes_no_order(storage, monkeypatch):
    for step, at in ((1, 2e9), (2, 1e9), (3, 1.5e9), (99_999_999, 1.0), (100_000_000, 2.0)):
        save(storage, step, keep=3)
        for path in Path(storage.uri).rglob("*"):
            if f"step-{step:08d}" in str(path):
                os.utime(path, (at, at))
    assert found(storage)[0]["step"] == 100_000_000
    kept = ["step-100000000", "step-99999999", "step-00000003"]
    assert checkpoint.folders(storage) == kept


@pytest.mark.parametrize("name", ["../../dev/zero", "/dev/zero", "..", 5, None])
def test_a_manifest_whose_parts_are_elsewhere_is_damaged_and_nothing_there_is_read(storage, name):
    save(storage, 1)
    save(storage, 2)
    path = Path(storage.uri) / "step-00000002" / "manifest.json"
    record = json.loads(path.read_text())
    record["parts"][0]["name"] = name
    path.write_text(json.dumps(record))
    with pytest.raises(checkpoint.Damaged, match=r"manifest\.json: name of a part: "):
        checkpoint.manifest(storage, "step-00000002")
    assert found(storage)[0]["step"] == 1


def test_a_step_damaged_again_takes_the_place_of_what_was_set_aside_before(storage):
    for _ in range(2):
        save(storage, 1)
        save(storage, 2)
        (Path(storage.uri) / "step-00000002" / "part-00001.pt").write_bytes(b"")
        assert found(storage)[0]["step"] == 1
    assert storage.folders() == ["step-00000001", "step-00000002.corrupt"]


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    with pytest.raises(ValueError, match="holds more than plain values and tensors"):
        checkpoint.decode(checkpoint.encode({"state": Attack()}))
    assert not (tmp_path / "ran").exists()


def test_tensors_and_plain_values_come_back_equal():
    state = {"weights": torch.randn(3, 2), "step": 3, "names": ["a", None, 1.5, True]}
    again = checkpoint.decode(checkpoint.encode(state))
    assert torch.equal(again.pop("weights"), state.pop("weights"))
    assert again == state


def test_keeping_none_is_refused(storage):
    with pytest.raises(ValueError, match="keep: 0, must be at least 1"):
        save(storage, 1, keep=0)
