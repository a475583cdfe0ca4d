"""The pool of processes, also where this folder's tests run by themselves, without Ray."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gloo_pool import gloo

__all__ = ["gloo"]
