"""Memory of the stages: what autograd keeps, measured, and what a pipeline will need, predicted.

A stage needs (1 + 1 + s) P + buffers + activations: parameters, gradients, s tensors of optimizer
state per parameter (frozen ones have neither), and the micro-batches that are between their forward
and their backward pass. Of these it keeps A each (all that autograd saves, and the stage's inputs),
or with checkpointing I (the inputs alone) until one is recomputed. How many there are at a time
follows from the schedule; with n stages, m micro-batches and k = min(m, n - j) on stage j:

| checkpoint      | ``gpipe``         | ``gpipe_fifo``    | ``1f1b``        | ``zero_bubble``  |
| --------------- | ----------------- | ----------------- | --------------- | ---------------- |
| ``never``       | m A               | m A               | k A             | min(m, n) A      |
| ``always``      | (m - 1) I + A     | (m - 1) I + A     | (k - 1) I + A   |                  |
| ``except_last`` | (m - 1) I + A     | (m - 1) I + A     | (k - 1) I + A   |                  |

Messages on their way and the workspaces of kernels are not in it; nor are, where the backward pass
is split, the gradients of what layers with weights return, kept for the turn of the weights, of j
micro-batches on stage j; of these A counts whole, though what is behind the last weights is gone.
"""

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from raykb.gpipe.schedule import actions, exempt, worker_of


class _Saved:
    """What autograd holds in place of a tensor that it saves."""

    __slots__ = ("__weakref__", "storage", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output would hold its own node, in a circle
        self.storage = tensor.untyped_storage()  # kept, so that its id stays its own


class SavedTensorMeter:
    """Count the bytes that autograd keeps for backward passes, while active in this thread::

        with SavedTensorMeter(model.parameters()) as meter:
            loss = model(batch)
            print(meter.current)
            loss.backward()
        print(meter.peak)

    A memory that several saved tensors share counts once, and no longer than autograd keeps it.
    What a recomputation saves counts, too, if its backward pass runs in the same thread, as it does
    on the CPU.

    Args:
        ignored: tensors whose memory does not count: parameters, buffers, a data set.

    Attributes:
        current: bytes that are kept now.
        peak: the most that ``current`` has been.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        self.current = 0
        self.peak = 0
        self._ignored = {id(s): s for s in (tensor.untyped_storage() for tensor in ignored)}
        self._held: dict[int, int] = {}  # by id of the storage: how many saved tensors share it
        self._lock = threading.RLock()  # other threads may free; a finaliser may run anywhere
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._saved: dict[int, weakref.ref[_Saved]] = {}  # in the order of their making

    def __enter__(self) -> "SavedTensorMeter":
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def reset_peak(self) -> None:
        """Let ``peak`` start again from ``current``."""
        self.peak = self.current

    def storages(self) -> list[torch.UntypedStorage]:
        """Return the memories that are kept now."""
        saved = [reference() for reference in list(self._saved.values())]
        return list({id(one.storage): one.storage for one in saved if one is not None}.values())

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        key, count = id(saved.storage), saved.storage.nbytes()
        if key not in self._ignored:
            with self._lock:
                self._held[key] = self._held.get(key, 0) + 1
                if self._held[key] == 1:
                    self.current += count
                    self.peak = max(self.peak, self.current)
                self._saved[id(saved)] = weakref.ref(saved)
            weakref.finalize(saved, self._release, id(saved), key, count).atexit = False
        return saved

    def _unpack(self, saved: _Saved) -> Tensor:
        return saved.tensor

    def _release(self, saved: int, key: int, count: int) -> None:
        with self._lock:
            del self._saved[saved]
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
                self.current -= count


@dataclass(frozen=True)
class LayerSizes:
    """Bytes of a layer and of one micro-batch in it; memories are numbered over the whole model.

    Attributes:
        name: in the model.
        parameters: bytes of its parameters.
        buffers: bytes of its buffers.
        inputs: bytes of each memory that the layer before hands to it.
        popped: of each skip that it pops: the index of the layer that left it, number, bytes.
        saved: bytes of each memory that autograd keeps for its backward pass, inputs included.
        frozen: bytes of those parameters that get no gradient.
    """

    name: str
    parameters: int
    buffers: int
    inputs: Mapping[int, int] = field(default_factory=dict)
    popped: Sequence[tuple[int, int, int]] = ()
    saved: Mapping[int, int] = field(default_factory=dict)
    frozen: int = 0


@dataclass(frozen=True)
class StageMemory:
    """Bytes that a worker of a pipeline will need for its stages.

    Attributes:
        parameters: bytes of the parameters.
        gradients: bytes of their gradients.
        optimizer: bytes of the optimizer's state.
        buffers: bytes of the buffers.
        saved: the most that it keeps between forward and backward passes.
        activations: the most including what a recomputation makes.
    """

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    saved: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        model = self.parameters + self.gradients + self.optimizer + self.buffers
        return model + self.activations


def micro_batch_bytes(
    layers: Sequence[LayerSizes], balance: Sequence[int]
) -> list[tuple[int, int]]:
    """Return (A, I) of each stage: bytes of one micro-batch that it saves, and of its inputs.

    The inputs, skips from earlier stages among them, are held until the backward pass whether a
    layer saves them or not, so A includes I.

    Args:
        layers: sizes of the whole model's layers with one micro-batch.
        balance: layers of each stage.
    """
    found, first = [], 0
    for count in balance:
        own = layers[first : first + count]
        inputs = dict(own[0].inputs)
        for layer in own:
            inputs |= {number: size for at, number, size in layer.popped if at < first}
        saved = dict(inputs)
        for layer in own:
            saved |= layer.saved
        found.append((sum(saved.values()), sum(inputs.values())))
        first += count
    return found


def predict(
    layers: Sequence[LayerSizes],
    balance: Sequence[int],
    *,
    schedule: str,
    micro_batches: int,
    checkpoint: str,
    state_tensors: int,
    stages_per_worker: int = 1,
) -> list[StageMemory]:
    """Return the bytes that each worker will need at its peak.

    Args:
        layers: sizes of the whole model's layers with one micro-batch, of
            :func:`raykb.gpipe.profile.profile_sizes`.
        balance: layers of each stage.
        schedule: one of :data:`raykb.gpipe.schedule.SCHEDULES`.
        micro_batches: of one step.
        checkpoint: ``always``, ``except_last`` or ``never``.
        state_tensors: tensors of optimizer state per parameter: 0 for plain SGD, 1 with momentum,
            2 for Adam, and for RMSprop with momentum.
        stages_per_worker: stages that each worker holds.

    Raises:
        ValueError: the balance does not sum to the layers, the checkpoint mode is unknown or the
            schedule cannot run.
    """
    if sum(balance) != len(layers) or min(balance, default=0) < 1:
        raise ValueError(
            f"balance: {list(balance)}, must be positive and sum to the model's {len(layers)} "
            "layers"
        )
    keeping = exempt(checkpoint, schedule, micro_batches)
    table = actions(schedule, len(balance), micro_batches, stages_per_worker)
    sizes = micro_batch_bytes(layers, balance)
    holders = [worker_of(stage, len(table), schedule) for stage in range(len(balance))]
    owners = [holder for holder, count in zip(holders, balance, strict=True) for _ in range(count)]
    found = []
    for worker, row in enumerate(table):
        own = [layer for layer, owner in zip(layers, owners, strict=True) if owner == worker]
        parameters = sum(layer.parameters for layer in own)
        trained = parameters - sum(layer.frozen for layer in own)
        held = saved = peak = 0
        for kind, stage, micro_batch in row:
            everything, inputs = sizes[stage]
            kept = everything if micro_batch in keeping else inputs
            if kind == "F":
                held += kept
            peak = max(peak, held - kept + everything if kind == "B" else held)
            saved = max(saved, held)
            if kind in "BW":
                held -= kept
        buffers = sum(layer.buffers for layer in own)
        state = state_tensors * trained
        found.append(StageMemory(parameters, trained, state, buffers, saved, peak))
    return found
