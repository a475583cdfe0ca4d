"""Consecutive layers of a sequential model: cut by a balance, under the names of the whole model.

A part keeps the names that its layers have in the unpartitioned model, so its state dict is a
subset of the model's. What a part computes is a function of its inputs, of the skips that reach it
and of the seeds that its random layers are given: it may be run again (recomputation), elsewhere,
and cut differently, with the same result.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from raykb.parts.skip import SkipKey, Skippable, carry

T = TypeVar("T")

Value = Tensor | tuple[Tensor, ...]
"""What passes between two layers of different parts."""

Skips = dict[SkipKey, Tensor | None]

SeedOf = Callable[[str], int]
"""Gives the seed of a layer, by the layer's name."""

_GENERATORS = threading.RLock()  # parts on several devices run in threads, also in backward

_RANDOM = (
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.RNNBase,
)


def flatten(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Return the layers of ``model`` with nested plain sequentials opened, under dotted names.

    A layer that stands in several places, as an activation may, is there under each name.
    """
    layers: list[tuple[str, nn.Module]] = []
    for name, child in model._modules.items():  # named_children leaves out what comes again
        if child is None:
            continue
        if type(child) is nn.Sequential:
            layers += [(f"{name}.{below}", layer) for below, layer in flatten(child)]
        else:
            layers.append((name, child))
    return layers


class Partition(nn.Module):
    """Consecutive layers of a sequential model.

    Args:
        layers: (name in the whole model, layer), in order; a dotted name nests.

    Attributes:
        layers: as given.
        stashed: skips that leave the part, in the order of its layers.
        popped: skips that reach it from earlier parts, in the order of its layers.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.layers = list(layers)
        self._random = {name for name, layer in layers if _may_draw(layer)}
        self._inside = {name: list(layer.modules()) for name, layer in layers}
        modules = [module for inside in self._inside.values() for module in inside]
        skippables = [module for module in modules if isinstance(module, Skippable)]
        stashed = [key for module in skippables for key in module.stashable()]
        popped = [key for module in skippables for key in module.poppable()]
        self.stashed: list[SkipKey] = [key for key in stashed if key not in popped]
        self.popped: list[SkipKey] = [key for key in popped if key not in stashed]
        for name, layer in layers:  # last: a layer may have the name of an attribute
            _attach(self, name, layer)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index][1]

    def __iter__(self) -> Iterator[nn.Module]:
        return (layer for _, layer in self.layers)

    def forward(
        self, inputs: Any, skips: Mapping[SkipKey, Tensor | None], seed_of: SeedOf | None = None
    ) -> tuple[Value, Skips]:
        """Return what the last layer returns, and the skips that leave the part.

        Args:
            inputs: a tensor or a flat tuple of tensors, for the first layer.
            skips: at least those of :attr:`popped`; they are not changed.
            seed_of: gives the seeds of layers that may draw random numbers; the global
                generators are left as they were. None lets layers draw from these.

        Raises:
            TypeError: the last layer returned something else than tensors.
        """
        store: Skips = {key: skips[key] for key in self.popped}
        device = _device(inputs)
        draws = seed_of is not None and any(self._draws(name) for name, _ in self.layers)
        with carry(store), _generators_kept(draws, device):
            inputs = self.through_layers(inputs, seed_of, device)
        if self.layers and not is_value(inputs):
            raise TypeError(
                f"layer {self.layers[-1][0]!r} returned {_kind(inputs)}; the last layer of a part "
                "must return a tensor or a flat tuple of tensors: cut elsewhere, or change it"
            )
        return inputs, {key: store[key] for key in self.stashed}

    def through_layers(self, inputs: Any, seed_of: SeedOf | None, device: torch.device) -> Any:
        """Return what the layers make of ``inputs``, each that may draw numbers under its seed."""
        for name, layer in self.layers:
            if seed_of is not None and self._draws(name):
                _seed(seed_of(name), device)
            inputs = layer(inputs)
        return inputs

    def _draws(self, name: str) -> bool:
        """Return whether a layer may draw random numbers, by itself or by hooks that it has now."""
        return name in self._random or any(
            module._forward_hooks or module._forward_pre_hooks for module in self._inside[name]
        )


def is_value(value: Any) -> bool:
    """Return whether ``value`` may pass between parts: a tensor or a flat tuple of tensors."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)


def balance_problems(balance: Sequence[int], layers: int) -> list[str]:
    """Return what is wrong with a ``balance`` over so many ``layers``; empty if it is fine."""
    found = []
    if any(not isinstance(count, Integral) or count <= 0 for count in balance):
        found.append(
            f"balance: {list(balance)}, all numbers of layers must be positive integers; leave "
            "out the stages that would have none"
        )
    if sum(balance) != layers:
        found.append(
            f"balance: {list(balance)} sums to {sum(balance)}, must sum to the model's {layers} "
            "layers; see raykb.gpipe.balance for balances by time, size or parameters"
        )
    return found


def name_problems(layers: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return a problem for each name that could not be told from another in a state dict."""
    names = [name for name, _ in layers]
    found = [
        f"layers: name {name!r} is given {names.count(name)} times, must be given once"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    taken = set(names)
    for name in dict.fromkeys(names):
        above = ".".join(name.split(".")[:-1])
        if "" in name.split("."):
            found.append(f"layers: name {name!r}, must not have an empty part between dots")
        elif above in taken:
            found.append(f"layers: name {name!r} is inside layer {above!r}; rename one of them")
    return found


def split(layers: Sequence[tuple[str, nn.Module]], balance: Sequence[int]) -> list[Partition]:
    """Return the parts of a sequential model.

    Args:
        layers: (name, layer) as :func:`flatten` or ``named_children`` gives them.
        balance: layers of each part.

    Raises:
        ValueError: the balance does not fit, or a parameter is shared by several parts; all
            problems are named.
    """
    found = [*name_problems(layers), *balance_problems(balance, len(layers))]
    if not found:
        found = shared_parameters(cut(layers, balance))
    if found:
        raise ValueError("\n".join(found))
    return [Partition(part) for part in cut(layers, balance)]


def cut(layers: Sequence[T], balance: Sequence[int]) -> list[list[T]]:
    """Return ``layers``, or what there is one of for each, in pieces of ``balance`` each."""
    pieces: list[list[T]] = []
    first = 0
    for count in balance:
        pieces.append(list(layers[first : first + count]))
        first += count
    return pieces


def shared_parameters(pieces: Sequence[Sequence[tuple[str, nn.Module]]]) -> list[str]:
    """Return a problem for each tensor that layers of different pieces have in common."""
    return [
        f"{' = '.join(names.values())}: shared by stages {list(names)}, which no "
        "pipeline can train; cut so that both layers are in one stage, or untie them"
        for names in _in_common(pieces)
    ]


def shared_layers(layers: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return a problem for each tensor that layers have in common, where the cut is yet unknown."""
    return [
        f"{' = '.join(names.values())}: shared by several layers, which must be in one stage; give "
        "a balance, as a list, that keeps them together, or untie them"
        for names in _in_common([[layer] for layer in layers])
    ]


def _in_common(pieces: Sequence[Sequence[tuple[str, nn.Module]]]) -> list[dict[int, str]]:
    """Return, for each tensor that several pieces have, its name in each of them."""
    owners: dict[int, dict[int, str]] = {}
    for index, piece in enumerate(pieces):
        for name, layer in piece:
            for below, tensor in [*layer.named_parameters(name), *layer.named_buffers(name)]:
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                owners.setdefault(id(tensor), {}).setdefault(index, f"{kind} {below}")
    return [names for names in owners.values() if len(names) > 1]


def _attach(parent: nn.Module, name: str, layer: nn.Module) -> None:
    """Make ``layer`` the submodule of ``parent`` under a dotted name.

    Not by ``add_module``, which refuses names that are attributes already, as ``layers`` is.
    """
    *path, last = name.split(".")
    for part in path:
        parent = parent._modules.setdefault(part, nn.Module()) or parent
    parent._modules[last] = layer


def _may_draw(layer: nn.Module) -> bool:
    """Return whether a layer may draw random numbers: known ones do not, others are asked not."""
    return any(
        isinstance(module, _RANDOM) or not type(module).__module__.startswith("torch.nn.modules.")
        for module in layer.modules()
    )


def _device(inputs: Any) -> torch.device:
    first = inputs[0] if isinstance(inputs, tuple) and inputs else inputs
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


@contextlib.contextmanager
def _generators_kept(used: bool, device: torch.device) -> Iterator[None]:
    """Put the global generators back at the end if they are ``used``, by one thread at a time."""
    if not used:
        yield
        return
    with _GENERATORS, torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _seed(seed: int, device: torch.device) -> None:
    """Seed the global generators that a layer on ``device`` may draw from, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"{type(value).__name__}"
