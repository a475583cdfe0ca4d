"""What must hold of the files of each training, by themselves."""

import io
import zipfile
from collections.abc import Callable

from raykb.engine import checkpoint
from raykb.engine.checkpoint import Damaged
from raykb.engine.foreign import parsed
from raykb.runtime.left import Left, LeftTraining, Told, Tracked
from raykb.runtime.run_files import CONFIG, FINAL, config_of
from raykb.runtime.saving import FINAL_BYTES
from raykb.runtime.storage import Storage
from raykb.runtime.tracking import tracked_name
from raykb.runtime.train import Result
from raykb.runtime.work import DETAILS, RESULT

_AGAIN = f"remove its {RESULT} and go on by --resume, which trains on from its last checkpoint"


def order(left: Left) -> Told:
    """I2: yield checkpoints of a later step than the result of their training."""
    for training, result in left.results:
        for newest in checkpoint.folders(training.folder)[:1]:
            if newest > checkpoint.folder_of(result.steps):
                what = f"is of a later step than {RESULT}, which says {result.steps}"
                yield f"{training.name}/{newest}", what, f"bring {RESULT} back from a copy"


def checkpoints(left: Left) -> Told:
    """I3: yield committed checkpoints that do not verify; those that were not, I6 names."""
    for training in left.trainings:
        for folder in checkpoint.folders(training.folder):
            try:
                for part in checkpoint.manifest(training.folder, folder):
                    checkpoint.read_part(training.folder, folder, part)
            except FileNotFoundError:
                continue
            except Damaged as error:
                going_on = "a run that goes on sets it aside and takes the one before"
                ended = "its training has ended, so that nothing needs it: remove the folder"
                yield training.name, str(error), going_on if training.result is None else ended


def whole(left: Left) -> Told:
    """I4: yield what cannot be read of trainings that have ended."""
    for training in left.trainings:
        if training.damage:
            yield f"{training.name}/{RESULT}", f"cannot be read ({training.damage})", _AGAIN
        elif training.result is not None:
            if FINAL not in training.files and not _is_large(training, training.result):
                yield f"{training.name}/{FINAL}", f"is not there, but {RESULT} is", _AGAIN
            for name in _READ:
                if name in training.files and (why := _damage(training.folder, name)):
                    yield f"{training.name}/{name}", f"cannot be read ({why})", _AGAIN


def steps(left: Left) -> Told:
    """I5: yield trainings of other steps than their recipe has, or tracked at another step."""
    for training, result in left.results:
        if wanted := _unlike_recipe(left.storage, training, result.steps):
            what = f"says {result.steps} steps, the recipe {wanted}"
            yield f"{training.name}/{RESULT}", what, _AGAIN
        if other := _tracked_at(left.tracked, training, result) - {result.steps}:
            what = f"says {result.steps} steps, the tracking store has it at {max(other)}"
            yield f"{training.name}/{RESULT}", what, f"bring {RESULT} back from a copy"


def _unlike_recipe(run: Storage, training: LeftTraining, taken: int) -> str:
    """Return what the recipe says, if other steps were taken; weights as they are take none."""
    try:
        recipe = config_of(run, training.folder).get("recipe") or {}
    except ValueError:
        return ""  # I4 has it
    if (wanted := recipe.get("steps")) and taken not in (0, wanted):
        return f"{wanted}"
    if (epochs := recipe.get("epochs")) and taken % epochs:
        return f"{epochs} epochs of equal steps"
    return ""


def _tracked_at(known: Tracked | None, training: LeftTraining, result: Result) -> set[int]:
    """Return the last step of each of a result's figures in the tracking store."""
    if known is None or (run := known.only(training.name)) is None:
        return set()
    histories = (known.history(run, tracked_name(name)) for name in result.metrics)
    return {points[-1][0] for points in histories if points}


def _is_large(training: LeftTraining, result: Result) -> bool:
    """Return whether it is a model in shares that nobody puts together unasked."""
    try:
        parts = checkpoint.manifest(training.folder, checkpoint.folder_of(result.steps))
    except (FileNotFoundError, Damaged):
        return False
    return sum(sum(part.holds.values()) for part in parts) >= FINAL_BYTES


def _damage(folder: Storage, name: str) -> str:
    """Return why a file cannot be read; empty if it can."""
    try:
        _READ[name](folder.read(name))
    except Exception as error:  # zip, pickle and torch have many words for a damaged file
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def _read_weights(data: bytes) -> None:
    """Read weights, and hold them against the check sums in the file, as torch does not."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if (damaged := archive.testzip()) is not None:
            raise Damaged(f"{damaged} in it is not what was written")
    if not isinstance(state := checkpoint.decode(data), dict):
        raise Damaged(f"it is no state dict but of type {type(state).__name__}")


def _read_mapping(data: bytes) -> None:
    if not isinstance(found := parsed(data), dict):
        raise Damaged(f"it is no mapping but of type {type(found).__name__}")


_READ: dict[str, Callable[[bytes], None]] = {
    CONFIG: _read_mapping,
    DETAILS: _read_mapping,
    FINAL: _read_weights,
}
