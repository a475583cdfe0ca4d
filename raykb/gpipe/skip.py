"""Skip connections under the paper library's names; their home is :mod:`raykb.parts.skip`."""

from raykb.parts.skip import Namespace, pop, skippable, stash, verify_skippables

__all__ = ["Namespace", "pop", "skippable", "stash", "verify_skippables"]
