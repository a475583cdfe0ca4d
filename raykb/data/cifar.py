"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as their authors pickled them, read without trust.

A pickle is a program: to load one is to run it. These are read by a machine that knows lists,
mappings, texts, numbers and arrays, and to which an array is what the file says of it: its shape,
its type and its bytes. Any other instruction, and any other name, is refused before it is run.

    cifar-10-batches-py/    data_batch_1 … 5, test_batch    {"data": (N, 3072) uint8, "labels": […]}
                            batches.meta                    {"label_names": […]}
    cifar-100-python/       train, test                     {"data": …, "fine_labels": […]}
                            meta                            {"fine_label_names": […]}
"""

import io
import math
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_MOST_BYTES = 2**28  # the largest, CIFAR-100's train, has 155 million
_SHAPE = (3, 32, 32)

_PLAIN = "MARK STOP PROTO FRAME DICT EMPTY_DICT SETITEM SETITEMS LIST EMPTY_LIST APPEND APPENDS"
_PLAIN += " TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2"
_PLAIN += " STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES"
_PLAIN += " SHORT_BINBYTES GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
_OF_ARRAYS = "GLOBAL STACK_GLOBAL REDUCE BUILD"
_KNOWN = frozenset(f"{_PLAIN} {_OF_ARRAYS}".split())


class _Type:
    """Stands for a type of numbers, of which it keeps the code, as ``u1``."""

    def __init__(self, code: object, *others: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Take nothing: bytes have no order."""


class _Array:
    """Stands for an array; it keeps what the file says of it."""

    state: object = None

    def __init__(self, *of_none: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


_NAMES = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type} | {
    (f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of numpy; refuse all others."""
        if (module, name) not in _NAMES:
            raise ValueError(f"asks for {module}.{name}")
        return _NAMES[module, name]


def read_batch(path: Path) -> dict[str, Any]:
    """Return the mapping in a pickled file; arrays (N, …) uint8, all else plain.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is too large, damaged, or anything but plain values and arrays of bytes.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        _check(data)
        found = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(found, dict):
            raise ValueError(f"holds {type(found).__name__}, not a mapping")
        return {str(key): _plain(value) for key, value in found.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise ValueError(_refusal(path, error)) from error
    except (pickle.UnpicklingError, UnicodeError) as error:
        raise ValueError(_refusal(path, error)) from error


def _refusal(path: Path, error: Exception | str) -> str:
    return (
        f"{path}: {error}; must be a pickle of plain values and arrays of bytes, as CIFAR's "
        "authors wrote it, and nothing of it was run. Take the file away, and have it downloaded "
        "again"
    )


def _check(data: bytes) -> None:
    """Refuse instructions that make anything but plain values and arrays, and what follows them."""
    end = 0
    for count, (code, argument, place) in enumerate(pickletools.genops(data), 1):
        if code.name not in _KNOWN:
            raise ValueError(f"has the instruction {code.name} at byte {place}")
        if "PUT" in code.name and int(argument or 0) > count:  # a table of that size would be made
            raise ValueError(f"keeps a value under the number {argument}, after {count} others")
        end = (place or 0) + 1
    if end != len(data):
        raise ValueError(f"goes on after its end, at byte {end}")


def _plain(value: Any) -> Any:
    """Return an array for what stands for one."""
    if isinstance(value, _Type):
        raise ValueError("holds a type where a value must be")
    if not isinstance(value, _Array):
        return value
    state: Any = value.state
    _, shape, kind, by_column, raw = state
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes) or not isinstance(kind, _Type) or kind.code != "u1":
        raise ValueError("holds an array that is not of bytes")
    if math.prod(shape) != len(raw) or min(shape, default=0) < 0:
        raise ValueError(f"holds an array of shape {shape} that has {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_column else "C")


def read_part(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 32, 32, 3) uint8 and labels (N,) int64 of some files, in their order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not of this kind.
    """
    images, labels = zip(*map(_images_and_labels, files), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _images_and_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_batch(path)
    data, labels = batch.get("data"), batch.get("labels", batch.get("fine_labels"))
    if not isinstance(data, np.ndarray) or data.shape[1:] != (math.prod(_SHAPE),):
        raise ValueError(_refusal(path, "has no images of 3 x 32 x 32"))
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(_refusal(path, "has no label for each image"))
    if not all(type(label) is int and 0 <= label < 2**15 for label in labels):
        raise ValueError(_refusal(path, "has labels that are no small numbers"))
    return data.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def read_names(path: Path, key: str) -> list[str]:
    """Return the names of the classes, which a file has under ``key``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not of this kind.
    """
    names = read_batch(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(_refusal(path, f"has no list of names under {key!r}"))
    return names
