"""How an architecture is drawn, and what a draw's loss says of the parameters it is drawn by.

    p_k = softmax(alpha)_k                        chance of operation k on an edge
    g_k = -log(-log u_k),  u_k ~ U(0, 1)          Gumbel noise
    s_k = log p_k + g_k
    z   = onehot(argmax_k s_k)                    then P(z = e_k) = p_k: the Gumbel-max law
    y   = softmax(s / tau)                        what z is relaxed to
    out = sum_k z_k o_k(x)                        an edge; its network is discrete
    G_k = <dL/d out, o_k(x)>                      the gradient of gate k, summed over all voxels

    sampler                  gradient of alpha_m                          operations run on an edge
    softmax               A  p_m (G_m - sum_k p_k G_k), and out has p for z                      all
    straight_through_all  B  1/tau y_m (G_m - sum_k y_k G_k)                                     all
    straight_through_executed
                          C  the same, with G_k = 0 for k that was not drawn                       1
    two_path              D  q_m (G_m - sum_pair q_k G_k), q = softmax(alpha) over a pair          2
    score_function        E  (z_m - p_m) (L - b),  b a running mean of L                           1

Sources: A is DARTS (Liu, Simonyan, Yang, ICLR 2019, arXiv:1806.09055); B the estimator of SNAS (Xie
et al., ICLR 2019, arXiv:1812.09926) with a hard forward pass (Jang, Gu, Poole, ICLR 2017,
arXiv:1611.01144); C is GDAS (Dong, Yang, CVPR 2019, arXiv:1910.04465); D follows ProxylessNAS (Cai,
Zhu, Han, ICLR 2019, arXiv:1812.00332); E is Williams, Machine Learning 8, 1992.

SCNAS relaxes each edge by Gumbel softmax with a temperature (a reader's notes of the paper), which
is nearest to B. That D is the default is our choice: it runs two operations where B runs all.

Measured in tests/nas/test_samplers.py, for alpha = (0, 1, 2, -1) and fixed losses: the mean
gradients of A and E are the exact one; B's has the cosine 0.99 with it at tau = 0.5, and 0.88 at
tau = 5; D's has 0.82, since it compares pairs as often as they are drawn. B, D and E find a planted
operation in 20 of 20 seeds.

Departures:
    - D draws its pair without replacement by p and executes the first, which so is drawn by p.
      ProxylessNAS executes one of the pair by q.
    - temperatures of B are a choice: tau_e = max(0.5, 5 * 0.97^e) in epoch e.
"""

import abc
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from raykb.engine.arguments import between, check_settings
from raykb.nas.genotype import SearchSpace


class Draw(NamedTuple):
    """One architecture, or many: any axes, then that of the operations.

    Attributes:
        gates: (..., |O|) what outputs are multiplied with: z, or p where all are mixed.
        drawn: (..., r) int64, the operations whose gates are not zero.
        watched: (..., w) int64, the others whose G the gradient needs.
        soft: (..., |O|) what the gradient weighs with: p, y or q.
        temperature: tau.
    """

    gates: Tensor
    drawn: Tensor
    watched: Tensor
    soft: Tensor
    temperature: float = 1.0

    @property
    def mixes(self) -> bool:
        """Whether an edge is a mixture, and the network not discrete."""
        return self.drawn.shape[-1] > 1


def perturbed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return s (..., |O|): log p and Gumbel noise."""
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
    return logits.log_softmax(-1) - (-uniform.log()).log()


def onehot(index: Tensor, like: Tensor) -> Tensor:
    """Return z (..., |O|) of indices (..., 1), in the type of ``like`` (..., |O|)."""
    return torch.zeros_like(like).scatter(-1, index, 1.0)


def through_softmax(soft: Tensor, gradient: Tensor) -> Tensor:
    """Return w_m (G_m - sum_k w_k G_k), the gradient G (..., |O|) taken through a softmax w."""
    return soft * (gradient - (soft * gradient).sum(-1, keepdim=True))


class Sampler(nn.Module, abc.ABC):
    """A row of the table, with what it remembers inside. Subclasses are final.

    Args:
        space: what is drawn from.

    Attributes:
        needs_gates: whether the gradient is made of G; if not, no backward pass is needed.
    """

    needs_gates: ClassVar[bool] = True

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()

    @abc.abstractmethod
    def draw(self, logits: Tensor, generator: torch.Generator, epoch: int) -> Draw:
        """Return a draw by alpha (..., |O|), on the CPU, in an epoch of learning alpha."""

    @abc.abstractmethod
    def gradient(self, draw: Draw, gates: Tensor, loss: Tensor) -> Tensor:
        """Return the gradient of alpha, (..., |O|).

        Args:
            draw: what was run.
            gates: G, (..., |O|), zero where nothing was run.
            loss: L, of the axes of the draw but the last, or a scalar.
        """


class Softmax(Sampler):
    """A: mix all operations by their chances."""

    def draw(self, logits: Tensor, generator: torch.Generator, epoch: int) -> Draw:
        """Return all operations with the gates p; nothing is drawn."""
        p = logits.softmax(-1)
        everything = torch.arange(p.shape[-1]).expand(p.shape)
        return Draw(gates=p, drawn=everything, watched=everything[..., :0], soft=p)

    def gradient(self, draw: Draw, gates: Tensor, loss: Tensor) -> Tensor:
        """Return p_m (G_m - sum_k p_k G_k)."""
        return through_softmax(draw.soft, gates)


def temperature_at(epoch: int, *, first: float, decay: float, last: float) -> float:
    """Return tau_e = max(last, first * decay^e)."""
    return max(last, first * decay**epoch)


class StraightThroughAll(Sampler):
    """B: execute the drawn operation, and ask all of them what they would have changed.

    Args:
        space: what is drawn from.
        first_temperature: tau_0.
        decay: of the temperature, each epoch.
        last_temperature: it does not fall below.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        first_temperature: float = 5.0,
        decay: float = 0.97,
        last_temperature: float = 0.5,
    ) -> None:
        super().__init__(space)
        self.first_temperature, self.decay = first_temperature, decay
        self.last_temperature = last_temperature
        warm = between(1e-3, 1e3)
        check_settings(self, first_temperature=warm, decay=between(0, 1), last_temperature=warm)

    def draw(self, logits: Tensor, generator: torch.Generator, epoch: int) -> Draw:
        """Return one operation executed by p, all others watched."""
        tau = temperature_at(
            epoch, first=self.first_temperature, decay=self.decay, last=self.last_temperature
        )
        s = perturbed(logits, generator)
        order = s.argsort(-1, descending=True)  # (..., |O|)
        return Draw(
            gates=onehot(order[..., :1], s),
            drawn=order[..., :1],
            watched=order[..., 1:],
            soft=(s / tau).softmax(-1),
            temperature=tau,
        )

    def gradient(self, draw: Draw, gates: Tensor, loss: Tensor) -> Tensor:
        """Return 1/tau y_m (G_m - sum_k y_k G_k)."""
        return through_softmax(draw.soft, gates) / draw.temperature


class StraightThroughExecuted(Sampler):
    """C: as B, with G = 0 for all that was not drawn. Refused where ``none`` can be drawn.

    Args:
        space: what is drawn from, without ``none``.
        first_temperature: as in B, and so are the others.
        decay: of the temperature.
        last_temperature: it does not fall below.

    Raises:
        ValueError: ``none`` is among the operations.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        first_temperature: float = 5.0,
        decay: float = 0.97,
        last_temperature: float = 0.5,
    ) -> None:
        super().__init__(space)
        if "none" in space.operations:
            raise ValueError(
                "sampler: 'straight_through_executed' cannot learn with 'none' among the "
                "operations: the output of 'none' is zero, hence so is its G whenever it is drawn, "
                "and nothing ever makes it less likely. Take two_path, straight_through_all or "
                "score_function, or a space without 'none'"
            )
        self.every = StraightThroughAll(
            space,
            first_temperature=first_temperature,
            decay=decay,
            last_temperature=last_temperature,
        )

    def draw(self, logits: Tensor, generator: torch.Generator, epoch: int) -> Draw:
        """Return one operation executed by p."""
        draw = self.every.draw(logits, generator, epoch)
        return draw._replace(watched=draw.watched[..., :0])

    def gradient(self, draw: Draw, gates: Tensor, loss: Tensor) -> Tensor:
        """Return that of B; G is zero for what was not run."""
        return self.every.gradient(draw, gates, loss)


class TwoPath(Sampler):
    """D: draw two operations, execute the first, and compare what the two would have changed."""

    def draw(self, logits: Tensor, generator: torch.Generator, epoch: int) -> Draw:
        """Return two distinct operations drawn by p; the first is executed."""
        pair = perturbed(logits, generator).topk(2).indices  # (..., 2)
        q = logits.gather(-1, pair).softmax(-1)
        return Draw(
            gates=onehot(pair[..., :1], logits),
            drawn=pair[..., :1],
            watched=pair[..., 1:],
            soft=torch.zeros_like(logits).scatter(-1, pair, q),
        )

    def gradient(self, draw: Draw, gates: Tensor, loss: Tensor) -> Tensor:
        """Return q_m (G_m - sum_pair q_k G_k); q is zero outside the pair."""
        return through_softmax(draw.soft, gates)


class ScoreFunction(Sampler):
    """E: make likelier what lost less than usual. Needs no backward pass.

    State: ``baseline`` b and ``steps``, how many losses it has seen.

    Args:
        space: what is drawn from.
        decay: of the running mean b of losses, which begins at the first one.
    """

    needs_gates = False

    baseline: Tensor
    steps: Tensor

    def __init__(self, space: SearchSpace, *, decay: float = 0.95) -> None:
        super().__init__(space)
        self.decay = decay
        check_settings(self, decay=between(0, 1))
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def draw(self, logits: Tensor, generator: torch.Generator, epoch: int) -> Draw:
        """Return one operation drawn by p."""
        drawn = perturbed(logits, generator).argmax(-1, keepdim=True)
        z = onehot(drawn, logits)
        return Draw(gates=z, drawn=drawn, watched=drawn[..., :0], soft=logits.softmax(-1))

    def gradient(self, draw: Draw, gates: Tensor, loss: Tensor) -> Tensor:
        """Return (z_m - p_m) (L - b), b of the steps before, and let b follow L."""
        now = loss.mean().to(self.baseline.dtype)
        before = self.baseline.where(self.steps > 0, now)
        self.baseline.copy_(self.decay * before + (1.0 - self.decay) * now)
        self.steps += 1
        return (draw.gates - draw.soft) * (loss - before).unsqueeze(-1)


SAMPLERS: dict[str, type[Sampler]] = {
    "two_path": TwoPath,
    "straight_through_all": StraightThroughAll,
    "straight_through_executed": StraightThroughExecuted,
    "score_function": ScoreFunction,
    "softmax": Softmax,
}
"""``build(space, **settings)`` by name; the first is the default."""
