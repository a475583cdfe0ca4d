"""Backbones that are judged as they are, beside those that a run trains.

as_they_are:
  weights:                               # by label: a file of a state dict, or torchvision's name
    imagenet: ResNet18_Weights.IMAGENET1K_V1
    mine: runs/pretrain-1/simclr/seed-0/final.pt
  models: {imagenet: {name: resnet18, stem: large}}        # where they are not the run's
  views: {imagenet: {name: resized_crop, size: 128, mean: [0.449], std: [0.226]}}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raykb.assembly.builder import Config, Data, network_of
from raykb.config import Problems
from raykb.data.download import WAIT_S, bounded_waits, is_refused
from raykb.engine.arguments import refuse
from raykb.engine.checkpoint import decode
from raykb.engine.names import check_name
from raykb.later import Later

torchvision = Later("torchvision")
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AsTheyAre:
    """Backbones that are judged without a step; a section of the config.

    Args:
        weights: by label, a file of a state dict, as a run's ``final.pt``; or the name that
            torchvision has for weights, which are downloaded if they are not there; null leaves out
            one that a file has.
        models: by label, the network of these weights where it is not the run's.
        views: by label, what that network takes of an image where it is not the run's.
    """

    weights: dict[str, str | None] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        for part in ("models", "views"):
            if other := getattr(self, part).keys() - self.weights.keys():
                problems.append(f"{part}: {sorted(other)} have no weights; must have a row there")
        for label in self.weights:
            try:
                check_name(label, "weights")
            except ValueError as error:
                problems.append(str(error))
        refuse(problems)

    def sections(self, config: Config) -> dict[str, dict[str, Any]]:
        """Return by label the sections that differ from the run's own."""
        given = {"model": self.models, "view": self.views}
        return {
            label: {name: rows.get(label, config[name]) for name, rows in given.items()}
            for label in self.places
        }

    @property
    def places(self) -> dict[str, str]:
        """Where the weights are, by label."""
        return {label: place for label, place in self.weights.items() if place is not None}

    def read(
        self, config: Config, data: Data, problems: Problems
    ) -> tuple[dict[str, State], dict[str, str]]:
        """Return weights by label, and what cannot be downloaded and why.

        Args:
            config: the run's; networks are those of :meth:`sections`.
            data: what a network has to know of the data.
            problems: take what is wrong: no such file, or another network's.
        """
        read, absent = dict[str, State](), dict[str, str]()
        for label, sections in self.sections(config).items():
            with problems.at(f"as_they_are.weights.{label}"):
                try:
                    read[label] = read_weights(self.places[label])
                except ConnectionError as error:
                    absent[label] = str(error)
                    continue
                put_weights(network_of({**config, **sections}, data), read[label])
        return read, absent


def read_weights(place: str) -> State:
    """Return the state that a file has, or torchvision's weights of a name.

    Raises:
        ValueError: it is neither a file of a state dict, nor a name of torchvision's.
        ConnectionError: torchvision's weights cannot be downloaded.
    """
    if (path := Path(place)).suffix != ".pt":
        return _published(place)
    try:
        state = decode(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{place}: no file of a state dict: {error.strerror}") from error
    except Exception as error:  # torch may raise anything on what it has not written
        raise ValueError(
            f"{place}: no file of a state dict ({type(error).__name__}); must be one as a run's "
            "final.pt, or as export_checkpoint.py writes it"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{place}: no state dict; must have tensors by name, as final.pt has")
    return state


def _published(name: str) -> State:
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, KeyError) as error:  # of an unknown network, of other weights of one
        raise ValueError(
            f"{name}: torchvision has no weights of this name; must be a file that ends in .pt, or "
            "a name as ResNet18_Weights.IMAGENET1K_V1"
        ) from error
    there = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if is_refused() and not there.exists():
        raise ConnectionError(f"{name}: not there yet, and a dry run downloads nothing")
    try:
        with bounded_waits():
            state: State = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = f"{error} (a connection may be silent for {WAIT_S:g} s)"
        raise ConnectionError(f"{name}: cannot be downloaded: {reason}") from error
    return state


def put_weights(network: nn.Module, state: State) -> None:
    """Load a state into a network whose classifier is frozen, which may be of other classes.

    Of a first layer for three channels in the state and one in the network, the kernels are summed:
    what it makes of a grey image is the same.

    Raises:
        ValueError: the state is another network's; what is missing is named.
    """
    own, taken = network.state_dict(), {}
    for name, value in state.items():
        if name in own and own[name].ndim == value.ndim == 4 and own[name].shape[1] == 1:
            value = value.sum(1, keepdim=True) if value.shape[1] == 3 else value
        if name in own and own[name].shape == value.shape:
            taken[name] = value
    frozen = {name for name, each in network.named_parameters() if not each.requires_grad}
    if missing := [name for name in own if name not in taken and name not in frozen]:
        raise ValueError(
            f"have no {', '.join(missing[:3])}{' …' * (len(missing) > 3)} of the shape that "
            f"{type(network).__name__} has; name the network of these weights under models"
        )
    network.load_state_dict(taken, strict=False)
