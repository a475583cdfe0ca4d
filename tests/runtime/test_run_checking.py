"""What a run leaves agrees, and whatever is broken of it is named: that, and nothing else."""

import contextlib
import json
import shutil

import here
import pytest
import torch
from databases import new_database
from mlflow import MlflowClient
from torch import nn

from raykb.comparison import Comparison
from raykb.engine import checkpoint
from raykb.engine.loop import Evaluated, Training
from raykb.runtime.checking import INVARIANTS, check
from raykb.runtime.closing import clean, close
from raykb.runtime.left import record_of, uri_of
from raykb.runtime.lock import holder, locked
from raykb.runtime.session import Refused, Session
from raykb.runtime.storage import LocalStorage, RemoteStorage
from raykb.runtime.tracking import Tracker
from raykb.runtime.work import TrainJob

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SADeprecationWarning")

STEPS = 8
CONFIG = {
    "seed": 3,
    "method": {"name": "own", "factor": 2.0},
    "recipe": {"steps": STEPS},
    "tracking": {"uri": None, "experiment": "raykb"},
}
CANDIDATES = [("split-0/round-0", 0), ("split-0/round-0", 1), ("split-0/round-1", 0)]
OWN = "own/seed-0"


def training(worker, *, factor):
    model = nn.Linear(40, 1)
    return Training(
        step=lambda batch, number: {"loss": torch.tensor(factor)},
        update=lambda step: {},
        batches=lambda start: iter([None] * (STEPS - start)),
        steps=STEPS,
        parts={"model": model},
        evaluate=lambda split: Evaluated(
            {f"{split}/top1": factor / 4, "nan": float("nan")}, {"a": 1}
        ),
        save_every=3,
        log_every=4,
    )


def search(session):
    """Leave what a search leaves: a ledger, and a run with its figures."""
    child = session.child("search/split-0", phase="search")
    session.storage.append("ledger.jsonl", {"event": "opened", "time": 0.0})
    for step, (study, number) in enumerate(CANDIDATES):
        key, figures = {"study": study, "number": number, "time": 1.0}, {"reward": step / 8}
        session.storage.append("ledger.jsonl", {"event": "asked", "params": {}} | key)
        told = {"event": "told", "status": "finished", "figures": figures} | key
        session.storage.append("ledger.jsonl", told)
        child.log(step, {"search/reward": step / 8, "search/best": step / 8})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that ended well, ``run``, and of the store that it is tracked in."""
    folder = tmp_path_factory.mktemp("whole")
    uri, storage = new_database(folder), LocalStorage(folder / "run")
    with locked(storage), Tracker(uri, "raykb", spool=folder / "run" / "tracking") as tracker:
        record = {"key": "5f3c" * 8, "tracking_uri": uri, "config": CONFIG}
        storage.write("run.json", json.dumps(record).encode())
        parent = tracker.run(record["key"], name="run")
        phases = {"trainings": 1}
        session = Session(CONFIG, CONFIG, storage, phases, parent, tracker, folder / "run")
        session.machine = here.HERE
        search(session)
        comparison = Comparison(rivals={"half": {"name": "own", "factor": 1.0}})
        entries = comparison.trainings(CONFIG)
        factors = [{"factor": entry.config["method"]["factor"]} for entry in entries]
        jobs = [
            (entry, TrainJob(entry.name, training, factor, 0))
            for entry, factor in zip(entries, factors, strict=True)
        ]
        found = session.compare("trainings", comparison, jobs)
        rows = [{"label": entry.label, "seed": 0} | result.metrics for entry, result in found]
        session.tell(comparison, rows, ["test/top1"])
    return folder


class Copy:
    """A copy of the run, to be broken; of its store as soon as that is asked for."""

    def __init__(self, whole, folder):
        self._whole, self._folder = whole, folder
        self.run, self.uri = folder / "run", f"sqlite:///{whole / 'mlflow.db'}"
        shutil.copytree(whole / "run", self.run)
        self.storage = LocalStorage(self.run)

    @property
    def client(self):
        own = f"sqlite:///{self._folder / 'mlflow.db'}"
        if self.uri != own:
            shutil.copy(self._whole / "mlflow.db", self._folder)
            self.uri = own
        return MlflowClient(own)

    def tracked(self, name):
        """Return the run of this name in the copied store."""
        client = self.client
        experiments = [each.experiment_id for each in client.search_experiments()]
        (run,) = [r for r in client.search_runs(experiments) if r.info.run_name == name]
        return run

    def edit(self, name, change):
        """Change a JSON file by a function of its content."""
        path = self.run / name
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    def lines(self, change):
        """Change the ledger by a function of its lines."""
        path = self.run / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(lines)))

    def check(self, **given):
        return check(self.storage, tracking_uri=self.uri, **given)


@pytest.fixture
def copy(whole, tmp_path):
    return Copy(whole, tmp_path)


def flipped(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def save(copy, step, *, committed=True):
    storage = copy.storage.below(OWN)
    part = checkpoint.write_part(storage, {"step": step}, step=step)
    if committed:
        checkpoint.commit(storage, [part], step=step, keep=9)


def second(copy, name, of):
    """Add a run of the same name; ``of`` is whose child it is, or whose key it has."""
    run = copy.tracked(of)
    own = of == name
    key = run.data.tags["raykb.key"].rpartition("/")[2]
    tags = {"raykb.key": f"other/{key}"} if own else {"mlflow.parentRunId": run.info.run_id}
    again = copy.client.create_run(run.info.experiment_id, run_name=name, tags=tags)
    copy.client.set_terminated(again.info.run_id)


def logged(copy, name, step, **figures):
    run_id = copy.tracked(name).info.run_id
    for key, value in figures.items():
        copy.client.log_metric(run_id, key.replace("_", "/"), value, step=step)


def late(found):
    """Have the results say that a training which ended is missing."""
    found["results"] = [row for row in found["results"] if row["label"] != "own"]
    found["missing"] = [OWN]


def ends(copy, name, status):
    copy.client.update_run(copy.tracked(name).info.run_id, status=status)


FAULTS = {
    # each finished piece, once
    "a candidate is told twice": ("I1", lambda c: c.lines(lambda each: [*each, each[-1]])),
    "a candidate was told and not asked": (
        "I1",
        lambda c: c.lines(lambda each: each[:1] + each[2:]),
    ),
    "a candidate was asked and not told": (
        "I1",
        lambda c: c.lines(lambda each: each[:2] + each[3:]),
    ),
    "a candidate is gone": ("I1", lambda c: c.lines(lambda each: each[:1] + each[3:])),
    "the last candidate is gone": ("I1", lambda c: c.lines(lambda each: each[:-2])),
    "a candidate has another figure": (
        "I1",
        lambda c: c.lines(lambda each: [line.replace("0.25", "0.75") for line in each]),
    ),
    "a line of the ledger is cut": ("I1", lambda c: c.lines(lambda e: [e[0][:-9] + "\n", *e[1:]])),
    "a candidate is tracked otherwise": (
        "I1",
        lambda c: logged(c, "search/split-0", 1, search_reward=0.5),
    ),
    "a training is tracked otherwise": ("I1", lambda c: logged(c, OWN, STEPS, test_top1=0.75)),
    # checkpoints
    "a checkpoint is later than the result": ("I2", lambda c: save(c, 20)),
    "a checkpoint is flipped": (
        "I3",
        lambda c: flipped(c.run / OWN / "step-00000006/part-00000.pt"),
    ),
    "a part is gone": ("I3", lambda c: (c.run / OWN / "step-00000003/part-00000.pt").unlink()),
    "a manifest is cut": ("I3", lambda c: cut(c.run / OWN / "step-00000006/manifest.json")),
    # finished trainings
    "the weights are flipped": ("I4", lambda c: flipped(c.run / OWN / "final.pt")),
    "the weights are cut": ("I4", lambda c: cut(c.run / OWN / "final.pt")),
    "the weights are others": ("I4", lambda c: torch.save([1], c.run / OWN / "final.pt")),
    "the weights are gone": ("I4", lambda c: (c.run / OWN / "final.pt").unlink()),
    "the details are cut": ("I4", lambda c: cut(c.run / OWN / "details.json")),
    "the configuration is cut": ("I4", lambda c: cut(c.run / OWN / "config.json")),
    "the result is cut": ("I4", lambda c: cut(c.run / OWN / "result.json")),
    "the result is of another kind": (
        "I4",
        lambda c: c.edit(f"{OWN}/result.json", lambda it: it.update(steps="8")),
    ),
    "the recipe has other steps": (
        "I5",
        lambda c: c.edit(f"{OWN}/config.json", lambda it: it["recipe"].update(steps=9)),
    ),
    "the epochs are not equal": (
        "I5",
        lambda c: c.edit(f"{OWN}/config.json", lambda it: it.update(recipe={"epochs": 3})),
    ),
    "a figure is tracked after the end": ("I5", lambda c: logged(c, OWN, STEPS + 1, test_top1=0.5)),
    # what is left of writers
    "a file was half written": (
        "I6",
        lambda c: (c.run / OWN / f".final.pt.{'0' * 32}.tmp").touch(),
    ),
    "the spool was half written": (
        "I6",
        lambda c: (c.run / f"tracking/.tracking.json.{'0' * 32}.tmp").touch(),
    ),
    "a checkpoint was half written": ("I6", lambda c: save(c, 7, committed=False)),
    # runs in the store
    "the run is not tracked": ("I7", lambda c: c.client.delete_run(c.tracked("run").info.run_id)),
    "the run is tracked twice": ("I7", lambda c: second(c, "run", "run")),
    "a training is not tracked": ("I7", lambda c: c.client.delete_run(c.tracked(OWN).info.run_id)),
    "a training is tracked twice": ("I7", lambda c: second(c, OWN, "run")),
    "a training that ended is FAILED": ("I7", lambda c: ends(c, OWN, "FAILED")),
    "a training goes on for ever": ("I7", lambda c: ends(c, OWN, "RUNNING")),
    "the run goes on for ever": ("I7", lambda c: ends(c, "run", "RUNNING")),
    # the end of it
    "the results have another figure": (
        "I8",
        lambda c: c.edit("results.json", lambda it: it["results"][0].update({"test/top1": 0.75})),
    ),
    "the results lack what ended": ("I8", lambda c: c.edit("results.json", late)),
    "the results are cut": ("I8", lambda c: cut(c.run / "results.json")),
    "a piece is KILLED of a whole run": ("I8", lambda c: ends(c, "search/split-0", "KILLED")),
}


def test_a_run_that_ended_well_keeps_all_invariants(copy):
    assert copy.check() == []
    assert check(copy.storage) == []
    assert uri_of(copy.storage) == copy.uri


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_is_named_and_nothing_else(copy, fault):
    invariant, break_it = FAULTS[fault]
    break_it(copy)
    (finding,) = copy.check()
    assert finding.invariant == invariant
    assert all((finding.where, finding.what, finding.remedy))
    assert str(finding) == f"{finding.where}: {finding.what}; {finding.remedy}"


def test_each_invariant_is_broken_by_some_fault():
    assert {invariant for invariant, _ in FAULTS.values()} == set(INVARIANTS)


def test_a_finding_says_what_where_and_both_values(copy):
    logged(copy, OWN, STEPS, test_top1=0.75)
    flipped(copy.run / OWN / "final.pt")
    one, other = map(str, copy.check())
    assert one.startswith(f"{OWN}/result.json: the tracking store has other figures: test/top1 0.5")
    assert "tracked 0.5 and 0.75; send what is left by python -m raykb.runtime.tracking" in one
    assert other.startswith(f"{OWN}/final.pt: cannot be read (")
    assert "remove its result.json and go on by --resume" in other


def test_any_byte_of_a_weight_that_is_flipped_is_seen(copy):
    path = copy.run / OWN / "final.pt"
    data = path.read_bytes()
    weight = checkpoint.decode(data)["weight"].numpy().tobytes()
    begin = data.index(weight)
    for place in range(begin, begin + len(weight), 16):
        path.write_bytes(data)
        flipped(path, place / len(data))
        assert [finding.invariant for finding in check(copy.storage)] == ["I4"], place


def test_a_run_that_was_stopped_on_the_way_has_nothing_wrong(copy):
    for name in ("results.json", f"{OWN}/result.json", f"{OWN}/final.pt", f"{OWN}/details.json"):
        (copy.run / name).unlink()
    for name in ("run", OWN):
        ends(copy, name, "KILLED")
    copy.storage.append("ledger.jsonl", {"event": "asked", "study": "split-0/round-1", "number": 1})
    assert copy.check() == []


def test_files_alone_tell_nothing_of_the_store(copy):
    ends(copy, OWN, "FAILED")
    assert len(copy.check()) == 1
    assert check(copy.storage) == []


def test_of_a_run_under_way_only_what_is_done_is_judged(copy):
    (copy.run / "tracking" / f".tracking.json.{'0' * 32}.tmp").touch()
    ends(copy, "run", "RUNNING")
    flipped(copy.run / OWN / "final.pt")
    with locked(copy.storage):
        assert [finding.invariant for finding in copy.check()] == ["I4"]
    assert [finding.invariant for finding in copy.check()] == ["I4", "I6", "I7"]
    assert [finding.invariant for finding in copy.check(under_way=True)] == ["I4"]


def test_a_large_model_in_shares_need_not_have_been_put_together(copy):
    (copy.run / OWN / "final.pt").unlink()
    storage = copy.storage.below(OWN)
    part = checkpoint.write_part(storage, {}, step=STEPS, holds={"weight": 2**31})
    checkpoint.commit(storage, [part], step=STEPS)
    assert check(copy.storage) == []


def test_a_row_that_stands_for_others_is_held_against_their_mean(copy):
    """As that of random architectures: ``random`` for ``random_0`` and ``random_1``."""

    def tell(found, mean):
        rows = {row["label"]: row for row in found["results"]}
        parts = [rows["half"] | {"label": "all_0"}, rows["own"] | {"label": "all_1"}]
        found["results"] = [*parts, {"label": "all", "seed": 0, "test/top1": mean}]

    copy.edit("results.json", lambda found: tell(found, (0.25 + 0.5) / 2))
    assert check(copy.storage) == []
    copy.edit("results.json", lambda found: found["results"][-1].update({"test/top1": 0.3}))
    (finding,) = check(copy.storage)
    assert finding.what == "no training has the figures of all/seed-0"


def test_a_row_of_a_part_of_a_training_is_held_against_that_part(copy):
    """As that of a way to choose which the predictor was tested beside."""
    copy.edit(f"{OWN}/result.json", lambda found: found["metrics"].update({"test/flip/top1": 0.75}))
    row = {"label": "flip", "seed": 0, "test/top1": 0.75}
    copy.edit("results.json", lambda found: found["results"].append(row))
    assert check(copy.storage) == []
    copy.edit("results.json", lambda found: found["results"][-1].update({"test/top1": 0.7}))
    (finding,) = check(copy.storage)
    assert finding.what == "no training has the figures of flip/seed-0"


def test_a_run_in_an_object_store_is_checked_and_cleaned_too(copy):
    (copy.run / "ledger.jsonl").unlink()  # there it is a folder
    storage = RemoteStorage(f"file://{copy.run}")
    assert check(storage) == []
    flipped(copy.run / OWN / "final.pt")
    save(copy, 7, committed=False)
    assert [finding.invariant for finding in check(storage)] == ["I4", "I6"]
    assert clean(storage) == [f"{OWN}/step-00000007"]
    assert [finding.invariant for finding in check(storage)] == ["I4"]


@pytest.mark.parametrize("data", [b"", b"{}", b'{"key": "../x", "config": {}}', b'{"key": "x"}'])
def test_what_is_no_run_is_refused(tmp_path, data):
    storage = LocalStorage(tmp_path)
    with pytest.raises(ValueError, match=r"run\.json: is not the record of a run \(FileNotFound"):
        check(storage)
    storage.write("run.json", data)
    with pytest.raises(ValueError, match=r"is not the record of a run .* bring the file back"):
        record_of(storage)


# ---------------------------------------------------------------------- what is done about it


def test_what_is_half_written_is_removed_and_nothing_else(copy):
    before = {path for path in copy.run.rglob("*") if path.is_file()}
    for invariant, break_it in FAULTS.values():
        if invariant == "I6":
            break_it(copy)
    (copy.run / "mine.tmp").touch()
    with locked(copy.storage), pytest.raises(Refused, match="another run holds it"):
        clean(copy.storage)
    assert len(clean(copy.storage)) == 3
    assert {path for path in copy.run.rglob("*") if path.is_file()} == {
        *before,
        copy.run / "mine.tmp",
    }
    assert copy.check() == []


def killed(copy):
    """Leave store and spool as kill -9 does: no run is finished, and not all is sent."""
    spool = copy.run / "tracking"
    every = (spool / "tracking.jsonl").read_bytes().splitlines(keepends=True)
    lines = [line for line in every if b'"op":"finish"' not in line]
    (spool / "tracking.jsonl").write_bytes(b"".join(lines))
    for name in ("run", OWN, "half/seed-0", "search/split-0"):
        ends(copy, name, "RUNNING")
    copy.edit("tracking/tracking.json", lambda it: it.update(uri=copy.uri, sent=len(lines[0])))


def test_a_killed_run_is_ended_as_killed_once_nobody_holds_it(copy):
    killed(copy)
    with locked(copy.storage), pytest.raises(Refused, match="another run holds it"):
        close(copy.storage, copy.uri)
    assert copy.tracked("run").info.status == "RUNNING"
    names = ["run", OWN, "half/seed-0", "search/split-0"]
    assert sorted(close(copy.storage, copy.uri)) == sorted(names)
    assert {copy.tracked(name).info.status for name in names} == {"KILLED"}
    assert close(copy.storage, copy.uri) == []


def test_what_a_killed_run_had_not_sent_is_sent_before_it_is_ended(copy):
    killed(copy)
    with (copy.run / "tracking" / "tracking.jsonl").open("a") as file:
        record = {"op": "finish", "at": 1000, "run": OWN, "status": "FINISHED"}
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
    assert sorted(close(copy.storage, copy.uri)) == ["half/seed-0", "run", "search/split-0"]
    assert copy.tracked(OWN).info.status == "FINISHED"


# ---------------------------------------------------------------------- who holds it


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_who_holds_a_run_is_known_without_taking_it(tmp_path, scheme):
    folder = tmp_path / "run"
    storage = RemoteStorage(f"{scheme}{folder}") if scheme else LocalStorage(folder)
    assert holder(storage) == ""
    assert not folder.exists()
    with locked(storage):
        assert "process" in holder(storage)
        with contextlib.suppress(Refused), locked(storage):
            raise AssertionError
    assert holder(storage) == ""
