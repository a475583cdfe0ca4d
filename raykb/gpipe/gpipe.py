"""GPipe in one process: micro-batches of one model over the devices of one host.

A drop-in for users of the paper's library::

    from raykb.gpipe import GPipe

    model = GPipe(model, balance=[2, 3], devices=["cuda:0", "cuda:1"], chunks=8)

Papers: Huang et al., "GPipe", NeurIPS 2019, arXiv 1811.06965; Kim et al., "torchgpipe",
arXiv 2004.09910.
"""

import functools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from raykb.engine.seeding import stream_seed
from raykb.gpipe import microbatch
from raykb.gpipe.arguments import Device, exact_devices, problems_of, verify_module
from raykb.gpipe.batchnorm import DeferredBatchNorm, deferred_layers
from raykb.gpipe.local import LocalPipeline
from raykb.gpipe.partition import Partition, SeedOf, Value, cut
from raykb.parts.skip import skip_routes, verify_skippables


class _Sequential(nn.Sequential):
    """A part as users see it: a sequential model, which is called when the part is."""

    def forward(self, input: Any, run: Callable[[Any], Any] | None = None) -> Any:
        if run is not None:
            return run(input)
        return super().forward(input)  # type: ignore[no-untyped-call]


class _Part(Partition):
    """A part whose layers are run inside its sequential model, so that hooks of that are, too."""

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__(layers)
        self._sequential = [_Sequential(OrderedDict(layers))]  # in a list: not a child

    @property
    def sequential(self) -> nn.Sequential:
        return self._sequential[0]

    def through_layers(self, inputs: Any, seed_of: SeedOf | None, device: torch.device) -> Any:
        through = super().through_layers
        return self.sequential(inputs, lambda value: through(value, seed_of, device))


class GPipe(nn.Module):
    """A sequential model whose parts are on several devices, trained in micro-batches.

    It is called as the model is, gives the same outputs and gradients, and has the model's names:
    a state dict of the one loads into the other. Layers are reached by index, as in a sequential
    model, not by name: names of layers could hide the wrapper's own.

    Inputs belong on ``devices[0]``; outputs are on ``devices[-1]``. What passes between the layers
    of two parts is a tensor or a flat tuple of tensors. Layers that draw random numbers get the
    same ones in a recomputation, and for every ``balance``: each call in training takes one number
    from torch's default generator, from which all others follow.

    Args:
        module: the model; its children are not taken apart.
        balance: number of layers of each part; see :mod:`raykb.gpipe.balance`.
        devices: of the parts; more than there are parts are ignored. By default all CUDA devices,
            or, without any, the CPU for every part, which is for debugging: parts on one device
            take turns.
        chunks: number of micro-batches, at most: they are cut as ``Tensor.chunk`` cuts.
        checkpoint: which micro-batches keep their inputs alone and are run again in backward:
            ``"always"``, ``"except_last"`` (all but the one that backward takes first) or
            ``"never"``. None in evaluation, or without gradients.
        deferred_batch_norm: let batch norm keep the statistics of mini-batches; see
            :class:`~raykb.gpipe.batchnorm.DeferredBatchNorm`. Replaces layers in ``module``.

    Attributes:
        balance: as given.
        devices: one for each part.
        chunks: as given.
        checkpoint: as given.

    Raises:
        TypeError: ``module`` is no ``nn.Sequential``, or its skips do not match.
        ValueError: ``balance``, ``chunks`` or ``checkpoint`` are not allowed, or layers share
            parameters; the message names all of it.
        IndexError: there are fewer devices than parts.

    Departures from the paper's library: names of the unpartitioned model; with fewer micro-batches
    than ``chunks`` the last one is exempt as well; mixed precision reaches every device.
    """

    def __init__(
        self,
        module: nn.Sequential,
        balance: Iterable[int] | None = None,
        *,
        devices: Iterable[Device] | None = None,
        chunks: int = 1,
        checkpoint: str = "except_last",
        deferred_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Sequential):
            verify_module(module)
        self.chunks, self.checkpoint = int(chunks), str(checkpoint)
        parts = None if balance is None else list(balance)
        problems = problems_of(module, parts, self.chunks, self.checkpoint)
        if problems or parts is None:
            raise ValueError("\n".join(problems))
        verify_skippables(module)
        self.balance = parts
        self.devices = exact_devices(devices, len(parts))
        if deferred_batch_norm:
            DeferredBatchNorm.convert_deferred_batch_norm(module, chunks=None)
        layers = [(name, layer) for name, layer in module._modules.items() if layer is not None]
        # A plain list: the layers are registered once, below, under the names of the model.
        self._parts = [_Part(piece) for piece in cut(layers, parts)]
        routes = skip_routes([list(part) for part in self._parts])
        self._sources = {key: source for key, (source, _) in routes.items()}
        self._deferred = deferred_layers(module)
        for part, device in zip(self._parts, self.devices, strict=True):
            part.to(device)
        self._modules.update(layers)
        self.training = module.training

    @property
    def partitions(self) -> nn.ModuleList:
        """The parts as sequential models, each on its device; hooks that they are given are run."""
        parts = nn.ModuleList([part.sequential for part in self._parts])
        for module in (parts, *parts):
            module.training = self.training
        return parts

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[operator.index(index)]

    def __iter__(self) -> Iterator[nn.Module]:
        return (layer for part in self._parts for layer in part)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_modules", {}):
            raise AttributeError(
                f"layer {name!r} is no attribute of a GPipe; take it by its index, or by "
                f"get_submodule({name!r})"
            )
        return super().__getattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module of a dotted name, as in the unpartitioned model."""
        first, _, rest = target.partition(".")
        if first not in self._modules:
            return super().get_submodule(target)
        child: nn.Module = self._modules[first]  # type: ignore[assignment]  # none is None
        return child.get_submodule(rest)

    def forward(self, input: Value) -> Value:
        """Return the model's output.

        Args:
            input: a tensor or a flat tuple of tensors, first dimension the samples, on the first
                device.

        Returns:
            a tensor or a flat tuple of tensors, on the last device.

        Raises:
            TypeError: the input, or what a part's last layer returns, is something else.
            RuntimeError: a layer was exchanged, added or deleted since the model was given.
            Exception: what a layer raises, as it was raised, with a note of its place.
        """
        microbatch.check(input)
        self._refuse_exchanged_layers()
        if not self._parts:
            return input
        for layer in self._deferred:
            layer.discard()  # what a call that failed has left
        values = microbatch.scatter(input, self.chunks)
        outputs = LocalPipeline(
            self._parts,
            self.devices,
            self._sources,
            checkpointed=self._checkpointed(len(values)),
            seed_of=self._drawn_seeds() if self.training else None,
        ).run(values)
        for layer in self._deferred:
            layer.commit()
        return microbatch.gather(outputs)

    def _refuse_exchanged_layers(self) -> None:
        """Refuse layers that are shown here or in ``partitions``, but are not those that run."""
        run = [layer for part in self._parts for layer in part.layers]
        shown = [layer for part in self._parts for layer in part.sequential._modules.items()]
        if not list(self._modules.items()) == shown == run:
            raise RuntimeError(
                "the layers of a GPipe were exchanged, which its parts would not notice: change "
                "the model before it is given to GPipe, or give a new GPipe the changed layers"
            )

    def _checkpointed(self, micro_batches: int) -> int:
        """Return how many micro-batches are run again in backward; the last of all is the first."""
        if not self.training or not torch.is_grad_enabled():
            return 0
        exempt = {"always": 0, "except_last": 1, "never": micro_batches}
        return micro_batches - exempt[self.checkpoint]

    @staticmethod
    def _drawn_seeds() -> Callable[[int], SeedOf]:
        number = int(torch.randint(2**62, (), device="cpu"))
        return lambda micro_batch: functools.partial(stream_seed, number, micro_batch)

    def cuda(self, device: Device | None = None) -> NoReturn:  # type: ignore[override]
        """Refuse: the devices are given to the constructor."""
        _refuse_to_move()

    def cpu(self) -> NoReturn:  # type: ignore[override]
        """Refuse: the devices are given to the constructor."""
        _refuse_to_move()

    def to(self, *args: Any, **kwargs: Any) -> "GPipe":  # type: ignore[override]
        """Cast parameters and buffers to a type; moving them is refused with a TypeError."""
        moves = isinstance(args[0] if args else None, torch.device | str | int | Tensor)
        if moves or kwargs.keys() & {"device", "tensor", "other"}:
            _refuse_to_move()
        return super().to(*args, **kwargs)


def _refuse_to_move() -> NoReturn:
    raise TypeError(
        "denied to move parameters and buffers, because GPipe should manage device placement; give "
        "`devices` to its constructor"
    )
