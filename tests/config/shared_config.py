"""What the tests of configurations share."""

from collections.abc import Callable
from typing import Any

import pytest

from raykb.config import ConfigError


def problems_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        function(*args, **kwargs)
    return list(raised.value.problems)
