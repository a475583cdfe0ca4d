"""When Ray Data may begin a block of steps."""

import time
from collections.abc import Callable
from typing import Any

from ray.data._internal.execution.backpressure_policy import BackpressurePolicy

_REST_S = 0.02


class Windowed(BackpressurePolicy):
    """Lets a block begin while its window is open."""

    def __init__(self, is_open: Callable[[int], bool], *of: Any) -> None:
        super().__init__(*of)
        self._is_open = is_open

    def can_add_input(self, op: Any) -> bool:
        """Say whether a block may begin; where none may and none is made, let the loop rest.

        It runs in the training's process and waits for tasks alone. Without a rest it would take a
        whole core while there are none, and the interpreter from the training.
        """
        if not op.input_dependencies or self._is_open(op.metrics.num_inputs_received):
            return True
        if not op.num_active_tasks():
            time.sleep(_REST_S)
        return False
