"""The layers of a network in their order, and parameters in groups for an optimizer."""

import itertools
from collections.abc import Iterable
from typing import Any

from torch import nn

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Split the parameters in two: weights decay, norms and biases (one dimension) do not."""
    return _split((p for p in model.parameters() if p.requires_grad), weight_decay)


def layered_groups(model: nn.Module, weight_decay: float, lr: float, layer_decay: float) -> Groups:
    """Return two groups, as :func:`parameter_groups`, for each layer, with rates of their own.

    The last layer has the rate ``lr``, and each one ``layer_decay`` times that of the next (Clark
    et al., ELECTRA, ICLR 2020, arXiv:2003.10555; for images Bao et al., BEiT, arXiv:2106.08254).
    """
    found = layers(model)
    return [
        group | {"lr": lr * layer_decay ** (len(found) - 1 - number)}
        for number, layer in enumerate(found)
        for group in _split(layer, weight_decay)
    ]


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters that are trained, by layer, from the first to the last.

    The members of a sequence or list of modules are a layer each, with all that is in them; of
    what stands outside of these, neighbours are one layer (the embeddings of a transformer, stem
    and norm of a ResNet). What has no weights but those of a norm belongs to the layer before.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found: list[list[nn.Parameter]] = []
    for _, members in itertools.groupby(named, key=lambda entry: _member(model, entry[0])):
        layer = [parameter for _, parameter in members]
        if found and all(parameter.ndim <= 1 for parameter in layer):
            found[-1] += layer
        else:
            found.append(layer)
    return found


def _member(model: nn.Module, name: str) -> str:
    """Return the path to the member of the outermost sequence that has a parameter, or ''."""
    path = name.split(".")
    for depth in range(len(path) - 1):
        if isinstance(model.get_submodule(".".join(path[:depth])), nn.Sequential | nn.ModuleList):
            return ".".join(path[: depth + 1])
    return ""


def _split(parameters: Iterable[nn.Parameter], weight_decay: float) -> Groups:
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
