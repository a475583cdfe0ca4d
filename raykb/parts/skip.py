"""Skip connections that a sequential model declares (Kim et al., torchgpipe, arXiv 2004.09910).

A layer of an ``nn.Sequential`` sees its predecessor alone. What it needs from further back it
declares, so that a pipeline knows which tensors cross which stages before anything runs::

    @skippable(stash=["identity"])              @skippable(pop=["identity"])
    class Keep(nn.Module):                      class Add(nn.Module):
        def forward(self, x):                       def forward(self, x):
            yield stash("identity", x)                  identity = yield pop("identity")
            return x                                    return x + identity

    block = Namespace()                         # its own for each pair of one name
    nn.Sequential(Keep().isolate(block), nn.Linear(8, 8), Add().isolate(block))

Run unwrapped, such a model hands its skips over by itself; a pipeline passes them with
:func:`carry`. As in the paper's library the parameters' names have a ``module.`` between.

Departures: names in a nested plain ``nn.Sequential``, or inside a layer, count too; ``isolate``
refuses names that the layer does not declare; decorated classes pickle; a :class:`Namespace` may
have a name, by which it is the same in every process.
"""

import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import total_ordering
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

Tensors: TypeAlias = Tensor | tuple[Tensor, ...]


@total_ordering
class Namespace:
    """Keep equal names of different skips apart: equal to its copies alone, or to its namesakes.

    Args:
        name: namespaces of one name are equal, also those of other processes; by default unique.
    """

    __slots__ = ("id",)

    def __init__(self, name: str | None = None) -> None:
        self.id = str(uuid.uuid4()) if name is None else name

    def __repr__(self) -> str:
        return f"Namespace({self.id!r})"

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Namespace) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self.id < other.id if isinstance(other, Namespace) else NotImplemented


SkipKey: TypeAlias = tuple[Namespace | None, str]
Store: TypeAlias = dict[SkipKey, Tensor | None]


@dataclass(frozen=True)
class stash:
    """Yielded by a skippable layer: leave a tensor, or None, for a later layer."""

    name: str
    tensor: Tensor | None


@dataclass(frozen=True)
class pop:
    """Yielded by a skippable layer: the yield's value is what an earlier layer left."""

    name: str


class _Stores(threading.local):
    """The calling thread's open stores, the innermost last; the first is its default."""

    def __init__(self) -> None:
        self.open: list[Store] = [{}]


_STORES = _Stores()


@contextmanager
def carry(store: Store) -> Iterator[None]:
    """Let the skips of layers that this thread runs inside pass through ``store``.

    A stash writes ``store[namespace, name]``, a pop takes it out. Outside, each thread has a store
    of its own, so that an unwrapped model works.
    """
    _STORES.open.append(store)
    try:
        yield
    finally:
        _STORES.open.pop()


class Skippable(nn.Module):
    """A layer that stashes and pops; made by :func:`skippable`, never directly.

    The arguments are those of the decorated class, whose instance is ``module``.
    """

    module_cls: ClassVar[Callable[..., nn.Module]]
    stashable_names: ClassVar[tuple[str, ...]]
    poppable_names: ClassVar[tuple[str, ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.module = self.module_cls(*args, **kwargs)
        self.namespaces: dict[str, Namespace] = {}

    def __repr__(self) -> str:
        return f"@skippable({self.module})"

    def key(self, name: str) -> SkipKey:
        """Return a name with the namespace it is isolated by, None by default."""
        return self.namespaces.get(name), name

    def stashable(self) -> list[SkipKey]:
        """Return what it leaves for later layers, in the order of the names."""
        return [self.key(name) for name in self.stashable_names]

    def poppable(self) -> list[SkipKey]:
        """Return what it takes from earlier layers, in the order of the names."""
        return [self.key(name) for name in self.poppable_names]

    def isolate(self, ns: Namespace, *, only: Iterable[str] | None = None) -> "Skippable":
        """Move its names into a namespace and return it.

        Args:
            ns: the namespace.
            only: names to move; by default all.

        Raises:
            ValueError: a name is not declared.
        """
        declared = {*self.stashable_names, *self.poppable_names}
        names = declared if only is None else set(only)
        if names - declared:
            raise ValueError(
                f"only={sorted(names)}: {_quoted(names - declared)} not among the names that "
                f"{self.module_cls.__name__} declares, {_quoted(declared)}"
            )
        self.namespaces.update(dict.fromkeys(names, ns))
        return self

    def forward(self, input: Any) -> Any:
        """Return the layer's output; its skips go through the thread's store.

        Raises:
            RuntimeError: a name is stashed or popped but not declared, declared but not stashed
                or popped, or popped but not stashed before.
            TypeError: the layer yields something else.
        """
        store = _STORES.open[-1]
        stashed: Store = {}  # stored at the end: a layer that fails leaves nothing behind
        popped: set[str] = set()

        def answer(command: object) -> Tensor | None:
            if isinstance(command, stash):
                if command.name not in self.stashable_names:
                    raise RuntimeError(f"'{command.name}' has not been declared as stashable")
                stashed[self.key(command.name)] = command.tensor
                return None
            if isinstance(command, pop):
                if command.name not in self.poppable_names:
                    raise RuntimeError(f"'{command.name}' has not been declared as poppable")
                if self.key(command.name) not in store:
                    raise RuntimeError(f"'{command.name}' has not been stashed")
                popped.add(command.name)
                return store.pop(self.key(command.name))
            raise TypeError(f"{command!r} is not a command of a skippable: yield stash or pop")

        output = _converse(self.module(input), answer)
        for what, declared, done in (
            ("stashed", self.stashable_names, {name for _, name in stashed}),
            ("popped", self.poppable_names, popped),
        ):
            if set(declared) - done:
                raise RuntimeError(f"{_quoted(set(declared) - done)} must be {what} but have not")
        store.update(stashed)
        return output


def _converse(running: Any, answer: Callable[[object], Tensor | None]) -> Any:
    """Answer what a generator yields and return what it returns; anything else as it is."""
    if not isinstance(running, Generator):
        return running
    value = None
    while True:
        try:
            command = running.send(value)
        except StopIteration as end:
            return end.value
        value = answer(command)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def skippable(
    stash: Iterable[str] = (), pop: Iterable[str] = ()
) -> Callable[[type[nn.Module]], type[Skippable]]:
    """Make a module class whose ``forward`` yields stashes and pops a :class:`Skippable`.

    Args:
        stash: names that ``forward`` stashes, each once a call.
        pop: names that it pops, each once a call.
    """
    # Sorted: the order of a set of strings differs from process to process.
    names = {"stashable_names": stash, "poppable_names": pop}
    declared = {key: tuple(sorted(set(value))) for key, value in names.items()}

    def decorate(module_cls: type[nn.Module]) -> type[Skippable]:
        place = {key: getattr(module_cls, key) for key in ("__module__", "__qualname__", "__doc__")}
        # The name now leads to the decorated class: pickle finds the plain one as its attribute.
        module_cls.__qualname__ += ".module_cls"
        return type(
            module_cls.__name__, (Skippable,), {"module_cls": module_cls, **declared, **place}
        )

    return decorate


def skip_problems(layers: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return what is wrong with the skips of a sequence of named layers; empty if nothing is.

    Each (namespace, name) has to be stashed once and popped once, later; no layer may stash and
    pop one name.
    """
    found: list[str] = []
    stashed: dict[SkipKey, None] = {}  # a dict keeps the order
    popped: set[SkipKey] = set()
    for layer_name, layer in _opened(layers):
        parts = [part for part in layer.modules() if isinstance(part, Skippable)]
        both = {key for part in parts for key in {*part.stashable()} & {*part.poppable()}}
        for _, name in sorted(both, key=lambda key: key[1]):
            found.append(f"'{layer_name}' declared '{name}' both as stashable and as poppable")
        for key in (key for part in parts for key in part.stashable() if key not in both):
            if key in stashed:
                found.append(
                    f"'{layer_name}' redeclared '{key[1]}' as stashable but not isolated by "
                    "namespace"
                )
            stashed[key] = None
        for key in (key for part in parts for key in part.poppable() if key not in both):
            if key in popped:
                found.append(
                    f"'{layer_name}' redeclared '{key[1]}' as poppable but not isolated by "
                    "namespace"
                )
            elif key not in stashed:
                found.append(
                    f"'{layer_name}' declared '{key[1]}' as poppable but it was not stashed"
                )
            else:
                popped.add(key)
    for key in stashed:
        if key not in popped:
            found.append(f"no module declared '{key[1]}' as poppable but stashed")
    return found


def verify_skippables(module: nn.Sequential) -> None:
    """Check that the skips of a sequential model match; see :func:`skip_problems`.

    Raises:
        TypeError: they do not; the message lists every problem.
    """
    found = skip_problems(list(module.named_children()))
    if found:
        lines = "\n".join(f"* {problem}" for problem in found)
        raise TypeError(f"one or more pairs of stash and pop do not match:\n\n{lines}")


def skip_routes(parts: Sequence[Sequence[nn.Module]]) -> dict[SkipKey, tuple[int, int]]:
    """Return where each skip that crosses parts of a model comes from and goes to.

    Args:
        parts: the consecutive layers of each part.

    Returns:
        (index of the part that stashes, of the one that pops) of each, in the order in which the
        layers stash them, which is the same in every process.
    """
    sources: dict[SkipKey, int] = {}
    destinations: dict[SkipKey, int] = {}
    for index, part in enumerate(parts):
        for module in (module for layer in part for module in layer.modules()):
            if isinstance(module, Skippable):
                sources.update(dict.fromkeys(module.stashable(), index))
                destinations.update(dict.fromkeys(module.poppable(), index))
    return {
        key: (source, destinations[key])
        for key, source in sources.items()
        if destinations.get(key, source) != source
    }


def _opened(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in layers:
        if type(layer) is nn.Sequential:
            yield from _opened((f"{name}.{below}", part) for below, part in layer.named_children())
        else:
            yield name, layer
