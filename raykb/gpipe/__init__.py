"""Pipeline parallelism: one model over several devices, with the gradients of one (GPipe)."""

from raykb.gpipe.checkpointing import is_checkpointing, is_recomputing
from raykb.gpipe.gpipe import GPipe

__all__ = ["GPipe", "is_checkpointing", "is_recomputing"]
