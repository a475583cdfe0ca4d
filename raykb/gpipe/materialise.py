"""Models larger than a host: built without memory, and each layer filled where it is needed.

A model is built on the meta device, where tensors have shapes and no memory. A stage fills its own
layers alone, each from a stream of its own: (seed, layer name), so the initial weights are the same
for every number of stages.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raykb.engine.seeding import stream_seed
from raykb.gpipe.partition import Partition


def materialise(part: Partition, seed: int, device: torch.device | str = "cpu") -> Partition:
    """Return a part of a model with memory and initial weights for its layers on the meta device.

    Layers that have memory are taken as they are, moved to ``device``; the others are copied. What
    layers of the part share, they share in the result.

    Args:
        part: layers, on the meta device or real.
        seed: of the initial weights; a layer's are a function of it and the layer's name.
        device: where the result lives; the numbers are drawn on the CPU, whatever it is.

    Raises:
        ValueError: some module cannot initialise itself; all of them are named.
    """
    bare = [(name, layer) for name, layer in part.layers if _lacks_memory(layer)]
    problems = uninitialisable(bare)
    if problems:
        raise ValueError("\n".join(problems))
    made: dict[int, nn.Module] = {id(layer): layer for _, layer in part.layers}
    for name, layer in bare:
        if made[id(layer)] is layer:
            made[id(layer)] = filled(layer, name, seed)
    _tie([(layer, made[id(layer)]) for _, layer in part.layers])
    return Partition([(name, made[id(layer)]) for name, layer in part.layers]).to(device)


def filled(layer: nn.Module, name: str, seed: int) -> nn.Module:
    """Return a copy of one layer on the CPU with its initial weights; see :func:`materialise`.

    Raises:
        ValueError: a module's ``reset_parameters`` leaves some of its tensors as it found them.
    """
    source, layer = layer, copy.deepcopy(layer).to_empty(device="cpu")
    _tie([(source, layer)])
    marks = {id(tensor): _marked(tensor) for _, tensor in _tensors(layer)}
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(stream_seed(seed, "init", name))
        for module in reversed(list(layer.modules())):  # a parent's choice comes after its parts'
            reset = _reset(module)
            if reset is not None:
                reset()
    left = [
        key
        for key, tensor in _tensors(layer)
        if marks.get(id(tensor)) == tensor._version and _is_marked(tensor)
    ]
    if left:
        raise ValueError(
            f"layer {name!r}: {', '.join(left)} not filled by reset_parameters(); let it set all "
            "parameters and buffers of its module, so that a stage can start the layer alone"
        )
    return layer


def uninitialisable(layers: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return a problem for each module whose tensors :func:`materialise` could not fill."""
    found = []
    for name, layer in layers:
        for module in layer.modules():
            kind = type(module).__name__
            if _reset(module) is None and _owns(module):
                found.append(
                    f"layer {name!r}: {kind} owns parameters or buffers and has no "
                    "reset_parameters(); give it one that fills them, so that a stage can start "
                    "it alone"
                )
            found += [
                f"layer {name!r}: {kind}.{key} is a tensor without memory that is no parameter; "
                "make it a buffer (register_buffer, persistent=False if it is not to be saved)"
                for key, value in vars(module).items()
                if isinstance(value, Tensor) and value.is_meta
            ]
    return found


def _tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(), *layer.named_buffers()]


def _lacks_memory(layer: nn.Module) -> bool:
    return any(tensor.is_meta for _, tensor in _tensors(layer))


@torch.no_grad()
def _marked(tensor: Tensor) -> int:
    """Fill a tensor with what no initialisation gives; return how often it was changed then."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(torch.nan)
    else:
        tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)
    return tensor._version


def _is_marked(tensor: Tensor) -> bool:
    """Return whether a tensor is as :func:`_marked` left it; a ``.data`` is changed uncounted."""
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.numel() > 0 and bool(tensor.isnan().all())
    mark = True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
    return tensor.numel() > 0 and bool((tensor == mark).all())


def _tie(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Let the second of each pair of equal modules share what the first ones do.

    Moving a module from the meta device gives each place of a shared parameter one of its own.
    """
    made: dict[int, Tensor] = {}
    for before, after in pairs:
        modules = zip(before.modules(), after.modules(), strict=True)
        for old, new in modules:
            tables: Any = ((old._parameters, new._parameters), (old._buffers, new._buffers))
            for kept, tensors in tables:
                for key, tensor in kept.items():
                    if tensor is not None:
                        tensors[key] = made.setdefault(id(tensor), tensors[key])


def _reset(module: nn.Module):  # type: ignore[no-untyped-def]  # a bound method or None
    """Return what initialises a module: ``reset_parameters``, or torch's older name for it."""
    return getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))


def _owns(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own)
