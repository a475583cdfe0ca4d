"""What a GPipe is given, checked: the model, its balance, the devices."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn

from raykb.gpipe.checkpointing import CHECKPOINTS
from raykb.gpipe.partition import balance_problems

Device = torch.device | str | int


def problems_of(
    module: nn.Sequential, balance: list[int] | None, chunks: int, checkpoint: str
) -> list[str]:
    """Return what is wrong with a model and the arguments of a GPipe."""
    found = []
    if balance is None:
        found.append("balance is required; see raykb.gpipe.balance for how to find one")
    else:
        found += balance_problems(balance, len(module))
    if chunks < 1:
        found.append(f"number of chunks must be positive integer (chunks: {chunks})")
    if checkpoint not in CHECKPOINTS:
        found.append("checkpoint is not one of 'always', 'except_last', or 'never'")
    return found + _repeated(module)


def verify_module(module: nn.Module) -> None:
    """Check that a model can be partitioned.

    Raises:
        TypeError: it is no ``nn.Sequential``.
        ValueError: a layer stands in it twice, or layers share parameters.
    """
    if not isinstance(module, nn.Sequential):
        raise TypeError(
            f"module must be nn.Sequential to be partitioned (module: {type(module).__name__})"
        )
    problems = _repeated(module)
    if problems:
        raise ValueError("\n".join(problems))


def _repeated(module: nn.Sequential) -> list[str]:
    """Return what several layers of a model have in common."""
    layers = list(module._modules.items())
    counts = Counter(id(layer) for _, layer in layers)
    twice = [name for name, layer in layers if counts[id(layer)] > 1]
    if twice:
        return [f"module with duplicate children is not supported (layers: {twice})"]
    owned = Counter(
        id(parameter) for layer in module.children() for parameter in layer.parameters()
    )
    shared = [name for name, parameter in module.named_parameters() if owned[id(parameter)] > 1]
    if shared:
        return [
            "module with duplicate parameters in distinct children is not supported "
            f"(parameters: {shared})"
        ]
    return []


def exact_devices(devices: Iterable[Device] | None, parts: int) -> list[torch.device]:
    """Return a device for each of so many parts; by default a GPU each, or the CPU for all.

    Raises:
        IndexError: there are fewer devices than parts.
    """
    if devices is None:
        gpus = range(torch.cuda.device_count())
        devices = [torch.device("cuda", i) for i in gpus] or ["cpu"] * parts
    given = [torch.device(device) for device in devices]
    if len(given) < parts:
        raise IndexError(
            f"too few devices to hold given partitions (devices: {len(given)}, partitions: {parts})"
        )
    return [_exact(device) for device in given[:parts]]


def _exact(device: torch.device) -> torch.device:
    """Return a device by its one name: there is one CPU, and each GPU has a number."""
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
