"""DINO: a student says of any crop what its own slow teacher says of a large one.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised
Vision Transformers", ICCV 2021, arXiv:2104.14294.

    L       = 1/(2 (V - 1)) sum_{t=1,2} sum_{v != t} H(P'_t, P_v)                            (3)
    H(a, b) = -1/N sum_i sum_k a_ik log b_ik
    P_v     = softmax(g(f(x_v)) / T),   P'_t = softmax((g'(f'(x_t)) - c) / T'), no gradient  (1)
    c       <- m_c c + (1 - m_c) mean_{t, i} g'(f'(x_ti)),   after L                         (4)
    f', g'  <- m (f', g') + (1 - m) (f, g),   m climbs to 1 by a cosine

Symbols:
    x_vi        view v = 1..V of image i = 1..N: 1 and 2 are large, the others small crops
    f           network, to features (width,); f', g' are the teacher
    g           head: three linear layers with GELU between them to (b,), made of length 1, and
                the cosine with each of K rows of length 1: (K,)
    T, T'       temperatures; T' climbs evenly from a first to its last one
    c           centre (K,)

State: the teacher, and the centre, which begins at 0.

Departures:
    - none in the loss. What stays of a training is the student (official code: evaluates the
      teacher): ``recipe.ema_decay`` averages it in the same way.
    - dropout of a network, or paths that it drops, are dropped in its teacher, too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import above, at_least, check_settings, refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.precision import at_least_float32, in_float32
from raykb.parts.teacher import cosine_momentum, follow, teacher_of
from raykb.selfsup.batch import MultiCropBatch
from raykb.selfsup.collapse import feature_std
from raykb.selfsup.encoding import by_view, encoded, held, scores


@in_float32
def centred_shares(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return P' (N, K) of a teacher's logits (N, K) and its centre (K,); without gradient."""
    return ((logits.detach() - center) / temperature).softmax(1)


def dino_loss(student: Sequence[Tensor], shares: Sequence[Tensor], temperature: float) -> Tensor:
    """Return L, a scalar.

    Args:
        student: logits (N, K) of each view, the large ones first.
        shares: P' (N, K) of each large view.
        temperature: T.
    """
    losses = [
        cross_entropy(target, logits, temperature)
        for number, target in enumerate(shares)
        for view, logits in enumerate(student)
        if view != number
    ]
    return torch.stack(losses).mean()


@in_float32
def cross_entropy(shares: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return H, a scalar, of P' (N, K) and of logits (N, K) over the temperature."""
    return -(shares * (logits / temperature).log_softmax(1)).sum(1).mean()


class Head(nn.Module):
    """g: three linear layers, and cosines with K directions.

    Args:
        inputs: width of the features.
        outputs: K.
        hidden: width of the two hidden layers.
        bottleneck: b.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(torch.randn(outputs, bottleneck))

    def forward(self, features: Tensor, *, hold: bool = False) -> Tensor:
        """Return logits (N, K) of features (N, inputs); ``hold`` has the directions not trained."""
        rows = at_least_float32(self.layers(features))  # (N, b)
        directions = held(self.directions, hold=hold)
        return scores(F.normalize(rows, dim=1), F.normalize(directions, dim=1))


class DINO(Objective):
    """DINO.

    Args:
        task: what it is told.
        temperature: T.
        teacher_temperature: T' from the end of its climb on.
        first_teacher_temperature: T' at the first step.
        ramp_up: share of the steps in which T' climbs.
        momentum: m at the first step.
        center_momentum: m_c.
        local_views: small crops of each image (paper: 8).
        outputs: K (paper: 65536).
        hidden: width of the hidden layers of g (paper: 2048).
        bottleneck: b (paper: 256).
        freeze_steps: steps before the K directions are trained (official code: the first epoch).
    """

    sees = MultiCropBatch

    center: Tensor

    def __init__(
        self,
        task: Task,
        *,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        first_teacher_temperature: float = 0.04,
        ramp_up: float = 0.3,
        momentum: float = 0.996,
        center_momentum: float = 0.9,
        local_views: int = 4,
        outputs: int = 1024,
        hidden: int = 256,
        bottleneck: int = 64,
        freeze_steps: int = 0,
    ) -> None:
        super().__init__(task)
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.first_teacher_temperature = first_teacher_temperature
        self.momentum, self.center_momentum = momentum, center_momentum
        self.local_views, self.freeze_steps = local_views, freeze_steps
        positive = dict.fromkeys(
            ("temperature", "teacher_temperature", "first_teacher_temperature"), above(0)
        )
        check_settings(self, **positive, local_views=at_least(0))
        refuse_outside(
            ramp_up=(ramp_up, 0.0, 1.0),
            momentum=(momentum, 0.0, 1.0),
            center_momentum=(center_momentum, 0.0, 1.0),
        )
        self.steps, self.ramp_steps = task.steps, ramp_up * task.steps
        width = require(task.network, Backbone, "dino").width
        self.head = Head(width, outputs, hidden, bottleneck)
        self.teacher, self.teacher_head = teacher_of(task.network), teacher_of(self.head)
        self.register_buffer("center", torch.zeros(outputs))

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss`` and ``feature_std``."""
        crops = batch.views, batch.local
        features = encoded(network, *crops)
        logits = self.head(features, hold=step < self.freeze_steps)
        shares = self._shares(batch.views, step)
        loss = dino_loss(by_view(logits, *crops), shares, self.temperature)
        return {"loss": loss, "feature_std": feature_std(features)}

    @torch.no_grad()
    def _shares(self, views: Tensor, step: int) -> list[Tensor]:
        """Return P' (N, K) of each large view; the centre follows."""
        logits = by_view(self.teacher_head(encoded(self.teacher, views)), views)
        shares = [centred_shares(own, self.center, self.temperature_at(step)) for own in logits]
        self.center.lerp_(torch.cat(list(logits)).mean(0), 1.0 - self.center_momentum)
        return shares

    def temperature_at(self, step: int) -> float:
        """Return T' at a step."""
        climbed = min(step / self.ramp_steps, 1.0) if self.ramp_steps else 1.0
        first = self.first_teacher_temperature
        return first + climbed * (self.teacher_temperature - first)

    def after_step(self, network: nn.Module, step: int) -> None:
        """Let the teacher follow."""
        momentum = cosine_momentum(self.momentum, step, self.steps)
        follow(self.teacher, network, momentum)
        follow(self.teacher_head, self.head, momentum)
