"""Modules that take long to import, and are needed late or not at all."""

import importlib
from typing import Any


class Later:
    """A module that is imported when something of it is first asked for.

    ``torchvision = Later("torchvision")`` stands for ``import torchvision`` where that takes more
    than a tenth of a second: what refuses a config answers before such modules are there, a local
    Ray starts while they are imported, and a worker imports what its training uses.

    Args:
        module: its whole name.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)

    def __reduce__(self) -> tuple[type["Later"], tuple[str]]:
        return Later, (self._module,)
