"""Shapes and types at the boundaries of a pipeline, found without memory and without traces.

The parts of a model on the meta device are run once with a micro-batch that has no memory either,
so that every stage can be told what it will receive; torch's own inference would run the real
model, which changes the statistics of batch norm in some of its versions.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raykb.gpipe.inplace import share_memory, skip_overwritten, version
from raykb.gpipe.partition import Partition, Skips, Value, is_value
from raykb.parts.skip import SkipKey


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Spec":
        """Return that of ``tensor``."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of such a tensor."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta").nbytes

    @property
    def differentiable(self) -> bool:
        """Whether such a tensor can have a gradient."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def empty(self, device: torch.device | str = "meta") -> Tensor:
        """Return such a tensor, uninitialised."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Boundaries:
    """What passes between the parts of a model for one shape of micro-batch.

    Attributes:
        values: for each part what it is given, and last what the last one returns.
        bare: whether each of ``values`` is a tensor by itself rather than a tuple.
        skips: each skip that leaves its part; None for those that are None.
        overwrites: for each part whether it changes what it is given in place.
    """

    values: list[tuple[Spec, ...]]
    bare: list[bool]
    skips: dict[SkipKey, Spec | None]
    overwrites: list[bool]

    def skip(self, key: SkipKey) -> Spec:
        """Return the tensor that a skip is."""
        spec = self.skips[key]
        if spec is None:
            raise KeyError(f"skip {key[1]!r} is None")
        return spec


def probe(
    parts: Sequence[Partition],
    inputs: Sequence[Spec],
    *,
    bare: bool = True,
    travel: torch.dtype | None = None,
) -> Boundaries:
    """Return what passes between ``parts`` when the first is given ``inputs``.

    Args:
        parts: of the whole model, on the meta device.
        inputs: shapes and types of one micro-batch.
        bare: give the first part a tensor rather than a tuple; needs a single input.
        travel: the type that floating values take between parts (that of autocast); None leaves
            them as they are.

    Raises:
        ValueError: a part cannot run on this input, or does not return tensors.
    """
    value: Value = inputs[0].empty() if bare else tuple(spec.empty() for spec in inputs)
    values, shapes = [tuple(inputs)], [bare]
    skips: Skips = {}
    waiting: dict[SkipKey, Tensor] = {}  # of the skips: those that no part has popped yet
    overwrites = []
    for index, part in enumerate(parts):
        main = as_tuple(value)
        given = [*main, *(t for t in map(skips.get, part.popped) if t is not None)]
        versions = [version(tensor) for tensor in given]
        marks = {key: version(tensor) for key, tensor in waiting.items()}
        try:
            value, left = _run(part, value, skips)
        except Exception as error:
            first = part.layers[0][0] if part.layers else "none"
            raise ValueError(
                f"stage {index}, from layer {first!r} on, does not accept what it would be given, "
                f"{', '.join(f'{tuple(s.shape)} {s.dtype}' for s in values[-1])}: "
                f"{type(error).__name__}: {error}"
            ) from error
        overwrites.append(versions != [version(tensor) for tensor in given])
        for key, tensor in waiting.items():
            own = key in part.popped and not any(share_memory(tensor, other) for other in main)
            if marks[key] != version(tensor) and not own:
                raise ValueError(skip_overwritten(f"stage {index}", key))
        waiting = {key: tensor for key, tensor in waiting.items() if key not in part.popped}
        waiting |= {key: skip for key, skip in left.items() if skip is not None}
        skips |= left
        last = index == len(parts) - 1
        if travel is not None and not last:
            value = _cast(value, travel)
            skips |= {key: _cast(left[key], travel) for key in left if left[key] is not None}
        shapes.append(isinstance(value, Tensor))
        values.append(tuple(map(Spec.of, as_tuple(value))))
    specs = {key: None if skip is None else Spec.of(skip) for key, skip in skips.items()}
    return Boundaries(values, shapes, specs, overwrites)


def as_tuple(value: Value) -> tuple[Tensor, ...]:
    """Return ``value`` as a tuple of tensors."""
    return (value,) if isinstance(value, Tensor) else value


def _run(part: Partition, value: Value, skips: Skips) -> tuple[Value, Skips]:
    """Run a part on the meta device; what cannot run there, on zeros with weights of its own."""
    with torch.no_grad():
        try:
            found: tuple[Value, Skips] = part(value, skips)
        except Exception:  # whatever a layer says to tensors without numbers
            found = _run_on_zeros(part, value, skips)
    if not is_value(found[0]):
        raise TypeError("returned no tensors")
    return found


def _run_on_zeros(part: Partition, value: Value, skips: Skips) -> tuple[Value, Skips]:
    """Run a copy of a part in memory, for layers that must see numbers."""
    real = in_memory(part).eval()
    zeros = {k: None if t is None else torch.zeros_like(t, device="cpu") for k, t in skips.items()}
    inputs = tuple(torch.zeros_like(t, device="cpu") for t in as_tuple(value))
    with torch.random.fork_rng([]):
        output, left = real(inputs[0] if isinstance(value, Tensor) else inputs, zeros)
    on_meta = tuple(t.to("meta") for t in as_tuple(output))
    return (on_meta[0] if isinstance(output, Tensor) else on_meta), {
        key: None if skip is None else skip.to("meta") for key, skip in left.items()
    }


def in_memory(part: Partition) -> Partition:
    """Return a copy of a part with memory, all zeros."""
    real = copy.deepcopy(part).to_empty(device="cpu")
    for tensor in [*real.parameters(), *real.buffers()]:
        nn.init.zeros_(tensor)
    return real


def _cast(value, dtype: torch.dtype):  # type: ignore[no-untyped-def]  # a tensor or a tuple of them
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    return value.to(dtype) if value.is_floating_point() else value
