"""What the layers of a model cost, and the balance and the predictions made of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from raykb.gpipe.balance import solve
from raykb.gpipe.materialise import filled, uninitialisable
from raykb.gpipe.memory import LayerSizes, StageMemory, predict
from raykb.gpipe.partition import cut
from raykb.gpipe.profile import profile_sizes, profile_times
from raykb.gpipe.trace import Span, simulated

_Number = TypeVar("_Number", int, float)
By = Literal["time", "size", "parameters"]


@dataclass(frozen=True)
class Costs:
    """What each layer costs with one micro-batch.

    Attributes:
        forward_s: seconds of its forward pass.
        backward_s: seconds of its backward pass.
        sizes: its bytes.
    """

    forward_s: list[float]
    backward_s: list[float]
    sizes: list[LayerSizes]

    def balance(
        self,
        by: By | Sequence[int],
        stages: int,
        *,
        checkpoint: str,
        speeds: Sequence[float] | None = None,
    ) -> list[int]:
        """Return the layers of each stage.

        Args:
            by: what is made equal, or the balance itself. For fewer stages, as an elastic run may
                get, its own stages are joined, balanced by time: it may have its reasons for
                where it cuts.
            stages: their number.
            checkpoint: whether forward passes are done twice.
            speeds: of the stages' devices, which time is balanced for; None for equal ones.
        """
        if not isinstance(by, str):
            if len(by) > stages:
                joined = solve(_summed(self._step_s(checkpoint), by), stages)
                return _summed(by, joined)
            if len(by) == stages:
                return list(by)
        if by == "parameters":
            return solve([float(layer.parameters) for layer in self.sizes], stages)
        if by == "size":
            saved = [sum(layer.saved.values()) + 2 * layer.parameters for layer in self.sizes]
            return solve(list(map(float, saved)), stages)
        return solve(self._step_s(checkpoint), stages, speeds)

    def _step_s(self, checkpoint: str) -> list[float]:
        """Return each layer's seconds of a forward and a backward pass, recomputation included."""
        again = 1.0 if checkpoint == "never" else 2.0
        times = zip(self.forward_s, self.backward_s, strict=True)
        return [again * forward + backward for forward, backward in times]

    def stage_seconds(self, balance: Sequence[int]) -> tuple[list[float], list[float]]:
        """Return each stage's seconds of a forward and of a backward pass."""
        return _summed(self.forward_s, balance), _summed(self.backward_s, balance)

    def stages(self, balance: Sequence[int]) -> list[dict[str, Any]]:
        """Return of each stage its layers by name, parameters and seconds, forward and backward."""
        times = zip(*self.stage_seconds(balance), strict=True)
        return [
            {
                "layers": [layer.name for layer in own],
                "parameters": sum(layer.parameters for layer in own) // 4,
                "forward_s": forward_s,
                "backward_s": backward_s,
            }
            for own, (forward_s, backward_s) in zip(cut(self.sizes, balance), times, strict=True)
        ]

    def spans(
        self,
        balance: Sequence[int],
        *,
        schedule: str,
        micro_batches: int,
        checkpoint: str,
        stages_per_worker: int,
    ) -> list[list[Span]]:
        """Return the predicted spans of a step, without messages."""
        return simulated(
            schedule,
            *self.stage_seconds(balance),
            micro_batches=micro_batches,
            checkpoint=checkpoint,
            stages_per_worker=stages_per_worker,
        )

    def memory(
        self,
        balance: Sequence[int],
        *,
        schedule: str,
        micro_batches: int,
        checkpoint: str,
        stages_per_worker: int,
        state_tensors: int,
    ) -> list[StageMemory]:
        """Return the predicted bytes of each worker."""
        return predict(
            self.sizes,
            balance,
            schedule=schedule,
            micro_batches=micro_batches,
            checkpoint=checkpoint,
            state_tensors=state_tensors,
            stages_per_worker=stages_per_worker,
        )

    def state(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Costs":
        """Return what :meth:`state` described; keys that JSON made strings are numbers again."""
        sizes = [
            LayerSizes(
                **(
                    layer
                    | {name: {int(k): v for k, v in layer[name].items()} for name in _MEMORIES}
                    | {"popped": [tuple(skip) for skip in layer["popped"]]}
                )
            )
            for layer in state["sizes"]
        ]
        return cls(state["forward_s"], state["backward_s"], sizes)


_MEMORIES = ("inputs", "saved")


def measure(
    layers: Sequence[tuple[str, nn.Module]],
    sample: Tensor,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    timeout: float = 1.0,
) -> Costs:
    """Return what the layers cost with the micro-batch ``sample``.

    Args:
        layers: (name, layer) of the whole model; of those on the meta device one at a time gets
            memory, initialised by ``seed``.
        sample: one micro-batch; only its shape and type matter.
        seed: of the weights that are timed.
        device: where to measure times.
        timeout: seconds to measure for.
    """
    meta = any(parameter.is_meta for _, layer in layers for parameter in layer.parameters())
    able = meta and not uninitialisable(layers)
    forward_s, backward_s = profile_times(
        layers,
        torch.zeros_like(sample, device=device),
        timeout=timeout,
        device=device,
        materialise=(lambda layer, name: filled(layer, name, seed)) if able else None,
    )
    return Costs(forward_s, backward_s, profile_sizes(layers, sample.to("meta")))


def _summed(values: Sequence[_Number], balance: Sequence[int]) -> list[_Number]:
    found, first = [], 0
    for count in balance:
        found.append(sum(values[first : first + count]))
        first += count
    return found
