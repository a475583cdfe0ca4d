"""One plain state dict out of a run's checkpoints, or an error that says why not."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from raykb.engine import checkpoint, shards
from raykb.engine.seeding import rng_state
from raykb.runtime.storage import LocalStorage

SCRIPT = Path(__file__).parents[2] / "pipelines" / "export_checkpoint.py"
SPEC = importlib.util.spec_from_file_location("export_checkpoint", SCRIPT)
export_checkpoint = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(export_checkpoint)


def network(step):
    torch.manual_seed(step)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def save(folder, step, shares=2):
    """Save the network of a step in shares, or whole by one of two ranks."""
    storage, state = LocalStorage(folder), network(step).state_dict()
    cuts = [("0.",), ("1.", "2.")] if shares == 2 else [("",)]
    parts = []
    for rank in range(2):
        own = {"step": step, "rng": rng_state()}
        if rank < len(cuts):
            model = {name: state[name] for name in state if name.startswith(cuts[rank])}
            own["parts"] = {"model": model, "optimizer": {"state": {}}}
        held = shards.holds(own) if shares == 2 else None
        parts.append(checkpoint.write_part(storage, own, step=step, rank=rank, holds=held))
    checkpoint.commit(storage, parts, step=step)


def loaded(path):
    model = network(0)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.state_dict()


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize("where", ["run", "run/fold-0", "run/fold-0/theta"])
def test_the_newest_checkpoint_loads_into_the_plain_model(tmp_path, capsys, shares, where):
    folder = tmp_path / "run" / "fold-0" / "theta"
    save(folder, 4, shares)
    save(folder, 8, shares)
    out = tmp_path / "model.pt"
    export_checkpoint.main([str(tmp_path / where), "--out", str(out)])
    assert same(loaded(out), network(8).state_dict())
    assert [path.name for path in tmp_path.iterdir()].count("model.pt") == 1
    assert len(list(tmp_path.iterdir())) == 2
    size = f"{out.stat().st_size:,}"
    assert capsys.readouterr().out == (
        f"{out}: 9 tensors with 36 numbers, {size} bytes, from {folder}/step-00000008\n"
    )


def test_state_that_is_no_tensor_is_exported_and_not_counted(tmp_path, capsys):
    class Counted(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            assert state == {"calls": 3}

    model, storage = nn.Sequential(Counted(2, 2)), LocalStorage(tmp_path / "training")
    state = {"step": 1, "rng": rng_state(), "parts": {"model": model.state_dict()}}
    part = checkpoint.write_part(storage, state, step=1, rank=0, holds=shards.holds(state))
    checkpoint.commit(storage, [part], step=1)
    out = tmp_path / "model.pt"
    export_checkpoint.main([str(tmp_path / "training"), "--out", str(out)])
    assert "2 tensors with 6 numbers" in capsys.readouterr().out
    model.load_state_dict(torch.load(out, weights_only=True))


def test_a_step_can_be_chosen_and_a_uri_be_named(tmp_path):
    save(tmp_path / "run", 4)
    save(tmp_path / "run", 8)
    out = tmp_path / "model.pt"
    export_checkpoint.main([f"file://{tmp_path}/run", "--step", "4", "--out", str(out)])
    assert same(loaded(out), network(4).state_dict())


class Secret(LocalStorage):
    """A folder of this host, told as a bucket with user and password."""

    uri = "s3://me:abc@bucket/run"


def test_no_password_of_a_uri_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_checkpoint, "checkpoints", lambda where: Secret(tmp_path / "run"))
    save(tmp_path / "run", 4)
    given = [Secret.uri, "--out", str(tmp_path / "model.pt")]
    export_checkpoint.main(given)
    assert capsys.readouterr().out.endswith("from s3://***@bucket/run/step-00000004\n")
    (tmp_path / "model.pt").unlink()
    with pytest.raises(SystemExit, match=r"error: s3://\*\*\*@bucket/run: no checkpoint can be"):
        export_checkpoint.main([*given, "--step", "5"])


def test_a_damaged_checkpoint_is_passed_over_by_name_and_left_as_it_is(tmp_path, capsys):
    save(tmp_path / "run", 4)
    save(tmp_path / "run", 8)
    (tmp_path / "run" / "step-00000008" / "part-00001.pt").write_bytes(b"x")
    out = tmp_path / "model.pt"
    export_checkpoint.main([str(tmp_path / "run"), "--out", str(out)])
    assert same(loaded(out), network(4).state_dict())
    told = "passed over: step-00000008/part-00001.pt: is not what was written\n"
    assert capsys.readouterr().err == told
    assert checkpoint.folders(LocalStorage(tmp_path / "run")) == ["step-00000008", "step-00000004"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", r"no checkpoints are in it; name a run directory or the folder of a training"),
        ("several", r"has 2 trainings; name one of them:\n  .*run/a\n  .*run/b"),
        ("step", r"step-00000005: is not there, or was never finished\nThere are step-00000004\."),
        ("damaged", r"step-00000004/part-00000\.pt: is not what was written"),
        ("there", r"model\.pt: is there already; name another file"),
        ("nowhere", r"its folder is not there; make it first"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path, case, message):
    run, out = tmp_path / "run", tmp_path / "model.pt"
    options = []
    if case != "empty":
        save(run / "a", 4)
    if case == "several":
        save(run / "b", 4)
    if case == "step":
        options = ["--step", "5"]
    if case == "damaged":
        (run / "a" / "step-00000004" / "part-00000.pt").write_bytes(b"")
    if case == "there":
        out.touch()
    if case == "nowhere":
        out = tmp_path / "missing" / "model.pt"
    with pytest.raises(SystemExit) as caught:
        export_checkpoint.main([str(run), "--out", str(out), *options])
    assert re.search(message, caught.value.code)
    assert not out.exists() or case == "there"


def test_the_help_says_how_the_file_is_read(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0
    assert 'torch.load("model.pt", weights_only=True)' in done.stdout
