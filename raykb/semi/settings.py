"""The sections of the configuration that are no constructor of something else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raykb.engine.arguments import at_least, misfits, refuse

Row = dict[str, Any]
"""A method's ``name`` in ``METHODS`` and its arguments."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is trained beside the method, and how often.

    Args:
        seeds: trainings of each method, numbered from 0. A number means the same labels, initial
            weights and order of the images for all methods.
        rivals: further methods, by what they are called in tables and folders:
            ``{fixmatch: {name: fixmatch}, loose: {name: fixmatch, threshold: 0.8}}``.
    """

    seeds: int = 1
    rivals: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = misfits(self, seeds=at_least(1))
        wrong = [name for name in self.rivals if not name or set(name) & set("/\\ ")]
        if wrong:
            problems.append(f"rivals: {wrong}, must be names of folders, without '/' and spaces")
        refuse(problems)

    def methods(self, method: Mapping[str, Any]) -> dict[str, Row]:
        """Return the rivals and then ``method``, which is called by its name.

        Raises:
            ValueError: a rival is called so, too.
        """
        name = method["name"]
        if name in self.rivals:
            raise ValueError(
                f"comparison.rivals: {name!r} is what the section 'method' is called; call the "
                "rival otherwise, or leave it out"
            )
        return {**self.rivals, name: dict(method)}
