"""What a run has left: its record, and its trainings with their weights and checkpoints.

A run directory holds the record, and each training a folder at most :data:`DEPTH` folders below
it, with a configuration of its own if it is one of a comparison. What a folder is, the files in it
tell; nothing is read out of its name. A folder that links lead to a second time counts once, under
its own path if that is in the run directory.
"""

import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raykb.engine import checkpoint
from raykb.engine.foreign import parsed
from raykb.runtime.secrets import redacted
from raykb.runtime.storage import LocalStorage, Storage, open_storage

RECORD, CONFIG, FINAL = "run.json", "config.json", "final.pt"
TASK = "task.json"  # classes and shape of the images that were trained on
DEPTH = 3  # names of trainings have slashes: fold-0/theta
_SHOWN = 10


def opened(where: str) -> Storage:
    """Return the folder that a path or URI names: a run's, a training's, or that of a final.pt.

    A URI may end in a query, ``s3://bucket/run/final.pt?region=x``; in a path and in ``file://`` a
    question mark is a character like others.
    """
    base, query = _parted(where)
    return open_storage((base.removesuffix(f"/{FINAL}") or "/") + query)


def run_of(storage: Storage) -> Storage:
    """Return the run directory at or above a folder, or above what the folder is a link to.

    Raises:
        ValueError: there is no record in any of these.
    """
    for start in dict.fromkeys((storage.uri, _real(storage))):
        for folder in _upwards(start):
            if folder.exists(RECORD):
                return folder
    raise ValueError(
        f"{_at(storage)}: there is no {RECORD} in it or above it, so it is no run directory; give "
        "the one that the run printed"
    )


def config_of(run: Storage, training: Storage | None = None) -> dict[str, Any]:
    """Return the resolved configuration of a run, or of one of its trainings.

    Raises:
        ValueError: the file that :func:`config_file` names is not what it should be.
    """
    folder, name = config_file(run, training)
    what = "record of a run" if name == RECORD else "configuration of a training"
    try:
        found = parsed(folder.read(name))
        config: dict[str, Any] = found["config"] if name == RECORD else found
        if not isinstance(config, dict):
            raise TypeError(f"config is of type {type(config).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_at(folder)}/{name}: is not the {what}: {error!r}") from error
    return config


def tracking_of(record: Mapping[str, Any]) -> str | None:
    """Return where a record says that its run is tracked, without secrets; None if it does not."""
    configured = (record.get("config", {}).get("tracking") or {}).get("uri")
    uri: str | None = record.get("tracking_uri") or configured
    return uri


def config_file(run: Storage, training: Storage | None = None) -> tuple[Storage, str]:
    """Return folder and name of the file with the configuration: the training's, if it has one."""
    if training is not None and training.exists(CONFIG):
        return training, CONFIG
    return run, RECORD


def final_weights(where: str) -> tuple[Storage, Storage]:
    """Return the run directory, and the folder of the one training with weights that is meant.

    Raises:
        ValueError: there is no run or no finished training, or there are several; these are named.
    """
    folder = opened(where)
    run, found = run_of(folder), trainings(folder, _has_weights)
    if not found:
        raise ValueError(
            f"{_at(folder)}: 0 trainings have left a {FINAL}; let the run end, or go on with it by "
            "--resume; of a model of 2 GiB and more export_checkpoint.py makes it: --out "
            f"{FINAL} in the training's folder"
        )
    if len(found) > 1:
        named = _named(found, ", ")
        raise ValueError(
            f"{_at(folder)}: {len(found)} trainings have left a {FINAL}; name one of {named}"
        )
    return run, found[0]


def checkpoints(where: str) -> Storage:
    """Return the folder of the one training with checkpoints that is meant; it needs no record.

    Raises:
        ValueError: there is none, or there are several; these are named.
    """
    folder = opened(where)
    found = trainings(folder, _has_checkpoints)
    if not found:
        raise ValueError(
            f"{_at(folder)}: no checkpoints are in it; name a run directory or the folder of a "
            "training, whose configuration saves checkpoints"
        )
    if len(found) > 1:
        named = _named(found, "\n  ")
        raise ValueError(f"{_at(folder)}: has {len(found)} trainings; name one of them:\n  {named}")
    return found[0]


def trainings(
    top: Storage, has: Callable[[Storage], bool], *, within: int = DEPTH
) -> list[Storage]:
    """Return the folders at and below ``top`` that have something; none inside of another one.

    None is more than ``within`` folders below it.
    """
    seen, found = dict[str, int](), []
    folders, links = [(top, within)], list[tuple[Storage, int]]()
    while folders or links:  # links last: what they lead to may have been seen by then
        storage, depth = (folders or links).pop(0)
        place = _real(storage)
        if seen.get(place, -1) >= depth:
            continue
        if has(storage):
            found.append(storage)
            depth = within  # however it is met again, it has been
        elif depth:
            for name in storage.folders():
                child = storage.below(name)
                (links if _is_link(child) else folders).append((child, depth - 1))
        seen[place] = depth
    return found


def name_below(run: Storage, training: Storage) -> str:
    """Return the name of a training below its run directory, as ``final/none/seed-0``."""
    top, folder = (_parted(storage.place)[0] for storage in (run, training))
    return urllib.parse.unquote(folder.removeprefix(top).strip("/"))


def _has_weights(storage: Storage) -> bool:
    return storage.exists(FINAL)


def _has_checkpoints(storage: Storage) -> bool:
    return bool(checkpoint.folders(storage))


def _parted(where: str) -> tuple[str, str]:
    """Return a place without slashes at its end, and its query with the question mark."""
    if where.startswith("file://"):
        return where.removeprefix("file://").rstrip("/") or "/", ""
    if "://" not in where:
        return str(Path(where).expanduser().absolute()), ""
    base, mark, query = where.partition("?")
    return base.rstrip("/"), mark + query


def _upwards(where: str) -> Iterator[Storage]:
    """Yield a folder and those above it, as far as a training can be below its run directory.

    Of a URI nothing is above the bucket.
    """
    base, query = _parted(where)
    scheme, mark, path = base.rpartition("://")
    for _ in range(DEPTH + 1):
        yield open_storage(f"{scheme}{mark}{path or '/'}{query}")
        path, slash, _ = path.rpartition("/")
        if not slash:
            return


def _real(storage: Storage) -> str:
    """Return what is the same for all paths to a folder."""
    return os.path.realpath(storage.folder) if isinstance(storage, LocalStorage) else storage.uri


def _is_link(storage: Storage) -> bool:
    return isinstance(storage, LocalStorage) and storage.folder.is_symlink()


def _at(storage: Storage) -> str:
    return redacted(storage.uri)


def _named(found: Sequence[Storage], separator: str) -> str:
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return separator.join([*map(_at, found[:_SHOWN]), *more])
