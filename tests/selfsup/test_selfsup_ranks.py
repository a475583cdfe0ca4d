"""Two ranks with half of each batch train as one rank with the whole, for every method."""

import pytest
import torch
import torch.distributed as dist
from shared_views import SMALL, batch, method, network, share
from torch.nn.parallel import DistributedDataParallel

from raykb.engine.objective import Learner

OPTIONS = {
    "dcl": {"sigma": 0.5},
    "moco": {"symmetric": True},
    "swav": {"queue": 12, "freeze_steps": 1},
    "dino": {"freeze_steps": 1},
}


def run(name, rank=0, size=1, steps=3):
    """Return the terms and the gradients of some steps, and the state that is left."""
    objective = method(name, **OPTIONS.get(name, {}))
    learner = Learner(network(), objective).double()  # few rows and batch norm magnify rounding
    trained = learner if size == 1 else DistributedDataParallel(learner)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for number in range(steps):
        own = share(doubled(batch(objective, seed=number)), rank, size)
        terms = trained(own, number)
        terms["loss"].backward()
        gradients = {
            label: p.grad.clone() for label, p in learner.named_parameters() if p.requires_grad
        }
        seen.append(({label: term.item() for label, term in terms.items()}, gradients))
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(learner.network, number)
    return seen, learner.state_dict()


def doubled(whole):
    """Return a batch in float64."""
    return type(whole)(*(x.double() if x.is_floating_point() else x for x in whole))


def run_share(name, size):
    return run(name, dist.get_rank(), size)


@pytest.mark.parametrize("name", SMALL)
def test_losses_gradients_and_state_are_those_of_one_rank(gloo, name):
    whole, state = run(name)
    for part, own_state in gloo.run(run_share, name, 2, size=2):
        for (terms, gradients), (mine, my_gradients) in zip(whole, part, strict=True):
            assert mine == pytest.approx(terms, rel=1e-8, abs=1e-10)
            for label, gradient in gradients.items():
                torch.testing.assert_close(my_gradients[label], gradient, rtol=1e-7, atol=1e-9)
        for label, value in state.items():
            torch.testing.assert_close(own_state[label], value, rtol=1e-7, atol=1e-9)
