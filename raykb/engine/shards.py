"""The state of a run in shares: each rank saves some names, any ranks put together what they need.

A share is the state of one rank (:meth:`raykb.engine.loop.Training.state`), in which ``model`` and
the ``state`` of ``optimizer`` have the names of the whole model as keys::

    step, rng
    parts / model      / {name: tensor}
          / optimizer  / state / {name: {…}}, groups
          / scheduler, …                          equal on all ranks
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from raykb.engine import checkpoint
from raykb.engine.checkpoint import Part, Store


def holds(state: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of each of the model's tensors in a share, by name."""
    model = state.get("parts", {}).get("model", {})
    return {name: _size(value) for name, value in model.items()}


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def merge(states: Iterable[dict[str, Any]], names: Collection[str] | None = None) -> dict[str, Any]:
    """Return one share made of others: of what goes by name the union, of all else the first.

    Args:
        states: shares of one checkpoint.
        names: of the model, which alone are taken over; None takes all.

    Returns:
        A share without ``rng``.

    Raises:
        ValueError: some of ``names`` are in none of the states; all of them are listed.
    """
    merged: dict[str, Any] = {"parts": {}}
    for state in states:
        merged.setdefault("step", state["step"])
        for part, own in state.get("parts", {}).items():
            if part == "model":
                merged["parts"].setdefault(part, {}).update(_only(own, names))
            elif part == "optimizer":
                whole = merged["parts"].setdefault(part, own | {"state": {}})
                whole["state"].update(_only(own["state"], names))
            else:
                merged["parts"].setdefault(part, own)
    missing = sorted(set(names or ()) - merged["parts"].get("model", {}).keys())
    if missing:
        raise ValueError(
            f"the checkpoint of step {merged.get('step')} does not hold {', '.join(missing)}: it "
            "is of another model; resume with the configuration of the run that saved it"
        )
    return merged


def _only(named: dict[str, Any], names: Collection[str] | None) -> dict[str, Any]:
    return {name: value for name, value in named.items() if names is None or name in names}


def read_share(
    store: Store, folder: str, parts: Sequence[Part], names: Collection[str], own: int | None = None
) -> dict[str, Any]:
    """Return the share that holds ``names``, made of those parts alone that hold some of them.

    Args:
        store: the training's folder.
        folder: of the checkpoint.
        parts: of the checkpoint; one at a time is in memory.
        names: of the model, that are wanted.
        own: the part of which the random state is taken; None takes none.

    Raises:
        Damaged: one of the parts read does not verify.
        ValueError: some of the names are in no part.
    """
    wanted = [n for n, part in enumerate(parts) if not part.holds.keys().isdisjoint(names)]
    wanted = wanted or [n for n, part in enumerate(parts) if part.holds][:1] or [0]
    random: dict[str, Any] = {}

    def states() -> Iterator[dict[str, Any]]:
        for number in sorted({*wanted} if own is None else {*wanted, own}):
            state = checkpoint.decode(checkpoint.read_part(store, folder, parts[number]))
            if number == own:
                random["rng"] = state["rng"]
            yield state

    return merge(states(), names) | random


def whole_model(store: Store, folder: str) -> dict[str, Tensor]:
    """Return the whole model's state dict from the checkpoint in ``folder``, in shares or not.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it was never committed.
        Damaged: it does not verify.
    """
    parts = checkpoint.manifest(store, folder)
    wanted = [part for part in parts if part.holds] or parts[:1]  # not in shares: rank 0 has all
    read = (checkpoint.decode(checkpoint.read_part(store, folder, part)) for part in wanted)
    model: dict[str, Tensor] = merge(read)["parts"]["model"]
    return model
