"""Which layers can split their backward pass, as schedules without bubble do.

torch.distributed.pipelining runs autograd over a stage's graph twice (Qi et al., arXiv 2401.10241):

    I   from the outputs to the inputs, noting what reaches the nodes where weights come in
    W   from these nodes to the weights

So a layer's backward pass must stand being run twice, to the inputs alone and to the weights alone,
and a hook on a tensor before such a node is called twice, by which gradients go wrong silently.
Here each layer is tried on the meta device. What is back-propagated as one, in a function of its
own, is right, too, but gains nothing: its weights' gradients are found with those of the inputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raykb.gpipe.partition import Partition
from raykb.gpipe.probe import Boundaries, Spec, as_tuple, in_memory, probe

_REMEDY = "change it, or take the schedule 1f1b or interleaved"


def split_problems(
    layers: Sequence[tuple[str, nn.Module]], sample: Sequence[Spec], *, bare: bool = True
) -> list[str]:
    """Return which layers cannot split their backward pass, and why; empty if all can.

    Args:
        layers: (name, layer) of the whole model, on the meta device.
        sample: shapes and types of one micro-batch.
        bare: give the first layer a tensor rather than a tuple; needs a single input.

    Raises:
        ValueError: a layer cannot run on what it is given.
    """
    parts = [Partition([layer]) for layer in layers]
    boundaries = probe(parts, sample, bare=bare)
    found = []
    for index, part in enumerate(parts):
        try:
            _split(part, boundaries, index)
        except Exception as error:  # whatever autograd, or a function of the layer's, says
            found.append(
                f"layer {layers[index][0]!r} cannot split its backward pass: "
                f"{type(error).__name__}: {error}; {_REMEDY}"
            )
    return found


def _split(part: Partition, boundaries: Boundaries, index: int) -> None:
    """Back-propagate through a part twice: to what it is given, and to its weights."""
    try:
        leaves, ends = _forward(part, boundaries, index, "meta")
    except _Hooked:
        raise
    except Exception:  # whatever a layer says to tensors without numbers
        leaves, ends = _forward(in_memory(part), boundaries, index, "cpu")
    for targets in leaves:
        if ends and targets:
            gradients = [torch.zeros_like(end) for end in ends]
            torch.autograd.grad(ends, targets, gradients, retain_graph=True, allow_unused=True)


def _forward(
    part: Partition, boundaries: Boundaries, index: int, device: str
) -> tuple[tuple[list[Tensor], list[Tensor]], list[Tensor]]:
    """Return the leaves that a part was given, its weights, and its results with a gradient."""
    given = [_leaf(spec, device) for spec in boundaries.values[index]]
    specs = {key: boundaries.skips[key] for key in part.popped}
    skips = {key: None if s is None else _leaf(s, device) for key, s in specs.items()}
    main = tuple(tensor.clone() for tensor in given)  # no leaf: a layer may change it in place
    with torch.enable_grad(), _Hooks(), torch.random.fork_rng([]):
        copied = {key: None if t is None else t.clone() for key, t in skips.items()}
        value, left = part(main[0] if boundaries.bare[index] else main, copied)
    results = [*as_tuple(value), *left.values()]
    leaves = [t for t in [*given, *skips.values()] if t is not None and t.requires_grad]
    weights: list[Tensor] = [weight for weight in part.parameters() if weight.requires_grad]
    return (leaves, weights), [t for t in results if t is not None and t.requires_grad]


def _leaf(spec: Spec, device: str) -> Tensor:
    return spec.empty(device).zero_().requires_grad_(spec.differentiable)


class _Hooked(Exception):
    """A layer hooks a tensor on the way."""


class _Hooks(TorchFunctionMode):
    """Refuse hooks on what is no leaf."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function is Tensor.register_hook and not arguments[0].is_leaf:
            raise _Hooked("it hooks a tensor on the way, and torch would call the hook twice")
        return function(*arguments, **(options or {}))
