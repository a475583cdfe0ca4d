"""A worker's exception reaches the driver as it was, with where it happened."""

import threading
import traceback

import pytest
import torch.distributed as dist
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    NodeDiedError,
    ObjectStoreFullError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from raykb.engine.faults import add_note, causes, noted, notes
from raykb.runtime import faults
from raykb.runtime.faults import WorkerError, WorkerTraceback, is_loss, original, send_failure

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"


class Box:
    """A mailbox that is no actor."""

    def __init__(self):
        self.letters = []
        self.put = self

    def remote(self, letter):
        self.letters.append(letter)


class Stubborn(Exception):
    """Its ``__init__`` does not take its ``args``, and its lock does not pickle."""

    def __init__(self, number, *, lock):
        super().__init__(f"number {number}")
        self.lock = lock


class Described(Exception):
    """Its text is made of its attributes."""

    def __init__(self, number, *, of):
        self.number, self.of = number, of

    def __str__(self):
        return f"{self.number} of {self.of}"


class Sealed(Exception):
    """Nothing but its own constructor can make one."""

    def __new__(cls, text, *, by):
        return super().__new__(cls, text)

    def __init__(self, text, *, by):
        super().__init__(text)


class Plain(Exception):
    """An exception of a module of its own."""


@pytest.fixture
def sent(monkeypatch):
    monkeypatch.setattr(faults.ray, "get", lambda reference, timeout: None)

    def send(error, rank=1):
        box = Box()
        send_failure(box, "fold-0/train", rank, error)
        (letter,) = box.letters
        return letter

    return send


def caught(error, *wraps, note=None):
    """Raise ``error`` and what is wrapped around it; return the outermost as it was caught."""
    try:
        try:
            raise error
        except Exception as inner:
            if note:
                add_note(inner, note)
            raise
    except Exception as inner:
        for wrap in wraps:
            try:
                raise wrap from inner
            except Exception as outer:
                inner = outer
        return inner


def test_type_message_and_place_come_back_through_what_torch_wraps_around_them(sent):
    error = caught(Plain("a bug"), RuntimeError("failed to run forward"), note="stage 1, forward")
    letter = sent(error)
    assert (letter.rank, letter.lost, letter.message) == (1, False, "a bug")
    assert letter.kind.endswith("Plain")
    again = original(letter)
    assert type(again).__name__ == "Plain"
    assert str(again) == "a bug"
    assert notes(again) == ["stage 1, forward", "training 'fold-0/train', rank 1"]
    assert isinstance(again.__cause__, WorkerTraceback)
    text = "".join(traceback.format_exception(again))
    for piece in ("in caught", "stage 1, forward", "Plain: a bug", "failed to run forward"):
        assert piece in text


@pytest.mark.parametrize("built_in", [ArithmeticError("x"), KeyError("name"), OSError(2, "gone")])
def test_built_in_exceptions_come_back_equal(sent, built_in):
    again = original(sent(caught(built_in)))
    assert type(again) is type(built_in)
    assert again.args == built_in.args


@pytest.mark.parametrize(
    "error",
    [
        Stubborn(7, lock=threading.Lock()),
        ValueError("no number", threading.Lock()),
        Described(3, of=4),
    ],
    ids=lambda error: type(error).__name__,
)
def test_type_and_message_come_back_of_what_pickle_does_not_bring_back(sent, error):
    again = original(sent(caught(error, note="stage 0, micro-batch 2, backward")))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert "stage 0, micro-batch 2, backward" in str(again.__cause__)


def test_what_cannot_be_made_again_is_named_with_its_type(sent):
    letter = sent(caught(Sealed("closed", by="a layer")))
    assert letter.pickled is None
    again = original(letter)
    assert type(again) is WorkerError
    assert str(again).endswith("Sealed: closed")


def test_what_the_driver_cannot_unpickle_is_named_too(sent):
    letter = sent(caught(Plain("a bug")))._replace(pickled=b"of another host")
    assert str(original(letter)).endswith("Plain: a bug")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(CLOSED), True),
        (RuntimeError("[/a/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting"), True),
        (dist.DistNetworkError("the store is gone"), True),
        (ActorDiedError(), True),
        (RayTaskError("read", "trace", ActorDiedError()), True),
        (RayTaskError("read", "trace", ValueError("a bug in a data actor")), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError(CLOSED), False),
        (NotImplementedError(CLOSED), False),
        (RuntimeError("gloo: no such data set"), False),
        (RuntimeError(f"in step 3: {CLOSED}"), False),
        (RuntimeError("[enforce fail at /a/gloo/transport/tcp/pair.cc:9] 20 vs 12"), False),
        (WorkerCrashedError(), True),
        (NodeDiedError("gone"), True),
        (GetTimeoutError("a training that waits for an actor"), False),
        (ObjectStoreFullError("full"), False),
        (RuntimeEnvSetupError("no such package"), False),
    ],
)
def test_lost_peers_and_bugs_are_told_apart(error, lost):
    assert is_loss(error) is lost


def test_a_lost_peer_is_known_through_what_is_wrapped_around_it(sent):
    gloo = RuntimeError(CLOSED)
    assert sent(caught(gloo, RuntimeError("failed to run backward"))).lost


def test_causes_are_followed_to_the_first_and_not_into_what_was_suppressed():
    error = caught(KeyError("first"), ValueError("second"), RuntimeError("third"))
    assert [type(cause) for cause in causes(error)] == [RuntimeError, ValueError, KeyError]
    assert noted(error) is error
    shown = caught(KeyError("hidden"), ValueError("shown"))
    shown.__cause__ = None  # as `raise … from None` does
    assert list(causes(shown)) == [shown]
