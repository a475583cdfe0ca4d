"""Augmentation policies: plain data that says what is done to an image, and its application.

A *policy* is a list of *sub-policies*, a sub-policy a list of triples (operation, probability,
level) with probability and level in [0, 1]. One image is given one sub-policy, drawn uniformly;
the operations of that sub-policy fire independently, each with its own probability, in order::

    policy = Policy([[("Invert", 0.1, 0.5), ("Contrast", 0.2, 0.6)],
                     [("Rotate", 0.7, 0.2), ("TranslateX", 0.3, 0.9)]])
    images = policy.apply(images, torch.Generator().manual_seed(0))  # uint8 (N, C, H, W)

Where the numbers come from, and why a sample's augmentation depends on neither the batch nor the
device it is in, is told in :mod:`raykb.augment.draws`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from math import prod
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from raykb.augment.draws import NOTHING, Draws, apply_draws
from raykb.data.operations import NAMES, OPERATIONS
from raykb.engine.foreign import parsed
from raykb.engine.seeding import generator as named_generator
from raykb.later import Later

if TYPE_CHECKING:
    from raykb.augment.transform import PolicyTransform

transform = Later("raykb.augment.transform")

FORMAT, VERSION = "raykb.policy", 1
_DRAWS_PER_TURN = 4  # does it fire, which sign, centre x, centre y


class Triple(NamedTuple):
    """One operation of a sub-policy: its name, how often it fires, how strong it is."""

    operation: str
    probability: float
    level: float


@dataclass(frozen=True)
class PolicyStatistics:
    """Closed forms of what a policy does to images on average.

    Attributes:
        mean_probability: over all triples.
        mean_level: over all triples.
        fired_operations: expected number of operations that fire per image.
        no_op_probability: probability that none fires.
        usage: number of triples for each operation, all operations named.
    """

    mean_probability: float
    mean_level: float
    fired_operations: float
    no_op_probability: float
    usage: dict[str, int]


@dataclass(frozen=True, repr=False)
class Policy:
    """A list of sub-policies, each a list of (operation, probability, level).

    Immutable, comparable, hashable, picklable. Sub-policies may differ in length.

    Raises:
        ValueError: naming every problem of the sub-policies at once.
    """

    sub_policies: Sequence[Sequence[tuple[str, float, float]]]

    def __post_init__(self) -> None:
        if problems := _problems(self.sub_policies):
            raise ValueError("\n  - ".join([f"policy: {len(problems)} problem(s)", *problems]))
        frozen = tuple(
            tuple(Triple(str(name), float(p), float(level)) for name, p, level in sub_policy)
            for sub_policy in self.sub_policies
        )
        object.__setattr__(self, "sub_policies", frozen)

    def __repr__(self) -> str:
        rows = ([tuple(triple) for triple in sub_policy] for sub_policy in self.sub_policies)
        return f"Policy([{', '.join(map(repr, rows))}])"

    def __len__(self) -> int:
        return len(self.sub_policies)

    def __add__(self, other: "Policy") -> "Policy":
        return Policy([*self.sub_policies, *other.sub_policies])

    @property
    def depth(self) -> int:
        """Operations in the longest sub-policy."""
        return max(map(len, self.sub_policies))

    @property
    def draws(self) -> int:
        """Uniform numbers that :meth:`draw` takes per image."""
        return 1 + _DRAWS_PER_TURN * self.depth

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Operation, probability, magnitude and mirrored, each (sub-policies, depth)."""
        table = torch.zeros(4, len(self), self.depth, dtype=torch.float64)
        table[0] = NOTHING
        for i, sub_policy in enumerate(self.sub_policies):
            for j, (name, probability, level) in enumerate(sub_policy):
                operation, strength = OPERATIONS[name], torch.tensor(level, dtype=torch.float64)
                magnitude = float(operation.magnitude(strength))
                place = (NAMES.index(name), probability, magnitude, operation.mirrored)
                table[:, i, j] = torch.tensor(place, dtype=torch.float64)
        operations, probabilities, magnitudes, mirrored = table.unbind()
        return operations.long(), probabilities, magnitudes, mirrored.bool()

    def draw(self, uniforms: Tensor) -> Draws:
        """Turn uniform numbers into what each image undergoes.

        Args:
            uniforms: (N, at least ``self.draws``) float64 in [0, 1); the first ``self.draws``
                columns are used, so policies of different depth may share one table of numbers.
        """
        if uniforms.ndim != 2 or uniforms.shape[1] < self.draws or uniforms.dtype != torch.float64:
            raise ValueError(
                f"uniforms: {uniforms.dtype} {tuple(uniforms.shape)}; allowed: torch.float64 "
                f"(N, >= {self.draws}); make them with keyed_uniform(stream, ids, policy.draws)"
            )
        uniforms = uniforms[:, : self.draws].cpu()
        sub_policy = (uniforms[:, 0] * len(self)).long()  # (N,)
        turns = uniforms[:, 1:].unflatten(1, (self.depth, _DRAWS_PER_TURN))
        gate, sign = turns[..., 0], turns[..., 1]  # (N, depth)
        operation, probability, magnitude, mirrored = (table[sub_policy] for table in self._table)
        return Draws(
            operation=torch.where(gate < probability, operation, NOTHING),
            magnitude=torch.where(mirrored & (sign < 0.5), -magnitude, magnitude),
            centre=turns[..., 2:],
            sub_policy=sub_policy,
        )

    def apply(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        draws: Draws | None = None,
    ) -> Tensor:
        """Return uint8 images (N, C, H, W), each after a sub-policy of its own.

        Args:
            images: uint8 (N, C, H, W), on any device; never modified.
            generator: where the numbers come from; torch's global generator if None.
            draws: what to do, from :meth:`draw`; then no number is drawn here.
        """
        if draws is None:
            device = generator.device if generator is not None else "cpu"
            shape = (len(images), self.draws)
            draws = self.draw(
                torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
            )
        return apply_draws(images, draws)

    def without_duplicates(self) -> "Policy":
        """Return the policy with the first sub-policy of each sequence of operation names.

        The rule of the official Fast AutoAugment code: order counts, probabilities and levels do
        not.
        """
        first: dict[tuple[str, ...], Sequence[tuple[str, float, float]]] = {}
        for sub_policy in self.sub_policies:
            first.setdefault(tuple(name for name, _, _ in sub_policy), sub_policy)
        return Policy(list(first.values()))

    def statistics(self) -> PolicyStatistics:
        """Return the closed forms of what this policy does on average."""
        triples = [triple for sub_policy in self.sub_policies for triple in sub_policy]
        chances = [[p for _, p, _ in sub_policy] for sub_policy in self.sub_policies]
        counts = Counter(name for name, _, _ in triples)
        return PolicyStatistics(
            mean_probability=sum(p for _, p, _ in triples) / len(triples),
            mean_level=sum(level for _, _, level in triples) / len(triples),
            fired_operations=sum(map(sum, chances)) / len(self),
            no_op_probability=sum(prod(1 - p for p in ps) for ps in chances) / len(self),
            usage={name: counts[name] for name in NAMES},
        )

    @staticmethod
    def concatenate(policies: Sequence["Policy"]) -> "Policy":
        """Return the policy that holds the sub-policies of all ``policies``, in order."""
        return Policy([row for policy in policies for row in policy.sub_policies])

    @staticmethod
    def random(
        num_sub_policies: int, num_operations: int, generator: torch.Generator | int
    ) -> "Policy":
        """Return a policy drawn uniformly from the space; ``generator`` may be a plain seed."""
        if isinstance(generator, int):
            generator = named_generator(generator, "random_policy")
        shape = (num_sub_policies, num_operations, 3)
        numbers = torch.rand(shape, generator=generator, dtype=torch.float64).tolist()
        return Policy(
            [[(NAMES[int(o * len(NAMES))], p, level) for o, p, level in row] for row in numbers]
        )

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> str:
        """Return the policy as JSON, one sub-policy a line, every float exact.

        Args:
            provenance: where the policy comes from (search, seed, scores), kept in the file for
                its readers; :meth:`from_json` ignores it.
        """
        rows = ",\n    ".join(json.dumps(row) for row in self.sub_policies)
        head = f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n'
        if provenance is not None:
            head += f'  "provenance": {json.dumps(dict(provenance), allow_nan=False)},\n'
        return f'{head}  "sub_policies": [\n    {rows}\n  ]\n}}\n'

    @staticmethod
    def from_json(text: str) -> "Policy":
        """Return the policy that :meth:`to_json` wrote.

        Raises:
            ValueError: not JSON, not a policy, another version, or problems of its sub-policies.
        """
        try:
            content = parsed(text)
        except ValueError as error:
            raise ValueError(f"policy: not JSON ({error}); allowed: Policy.to_json()") from error
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        if given != FORMAT:
            raise ValueError(
                f"policy: format {given!r}; allowed: an object with 'format': {FORMAT!r}, "
                "as Policy.to_json() writes it"
            )
        if (version := content.get("version")) != VERSION:
            raise ValueError(
                f"policy: version {version!r}; allowed: {VERSION}; "
                "write the file again with this version's Policy.to_json()"
            )
        if "sub_policies" not in content:
            raise ValueError(
                f"policy: no key 'sub_policies' among {sorted(content)}; "
                "allowed: a list of sub-policies under it"
            )
        return Policy(content["sub_policies"])

    def to_transform(self) -> "PolicyTransform":
        """Return the policy as a torchvision transform of single images, for data loaders."""
        made: PolicyTransform = transform.PolicyTransform(self)
        return made


def _problems(sub_policies: Any) -> list[str]:
    """Return everything that keeps ``sub_policies`` from being a policy, in words."""
    if not isinstance(sub_policies, Sequence) or isinstance(sub_policies, str):
        return [f"{sub_policies!r}; allowed: a list of sub-policies"]
    if not sub_policies:
        return ["no sub-policies; allowed: one or more"]
    problems = []
    for i, sub_policy in enumerate(sub_policies):
        if not isinstance(sub_policy, Sequence) or isinstance(sub_policy, str) or not sub_policy:
            problems.append(f"sub-policy {i}: {sub_policy!r}; allowed: one or more triples")
            continue
        for j, triple in enumerate(sub_policy):
            place = f"sub-policy {i}, operation {j}"
            if not isinstance(triple, Sequence) or isinstance(triple, str) or len(triple) != 3:
                problems.append(f"{place}: {triple!r}; allowed: (operation, probability, level)")
                continue
            name, *numbers = triple
            if not isinstance(name, str) or name not in OPERATIONS:
                near = get_close_matches(str(name).title(), NAMES, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                problems.append(f"{place}: {name!r}{hint}; allowed: {', '.join(NAMES)}")
            for what, value in zip(("probability", "level"), numbers, strict=True):
                number = isinstance(value, Real) and not isinstance(value, bool)
                if not number or not 0 <= float(value) <= 1:
                    problems.append(f"{place}, {what}: {value!r}; allowed: a number in [0, 1]")
    return problems
