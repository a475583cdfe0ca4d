"""Two ranks with half of each batch train as one rank with the whole, for every method."""

import pytest
import torch
import torch.distributed as dist
from shared_methods import batch, classifier, method, seen_by, share
from torch.nn.parallel import DistributedDataParallel

from raykb.engine.objective import Learner
from raykb.semi import METHODS

SURE = {"threshold": 0.4}
OPTIONS = {
    "pseudo_label": SURE | {"ramp_up": 0.0},
    "uda": SURE,
    "fixmatch": SURE,
    "flexmatch": SURE,
    "freematch": {"momentum": 0.5, "fairness_weight": 1.0},
    "softmatch": {"momentum": 0.5},
    "contrastive_regularization": SURE | {"labelled": True, "views": 2},
}


def run(name, rank=0, size=1, steps=3):
    """Return the terms and the gradients of some steps, and the state that is left."""
    options = OPTIONS.get(name, {})
    objective, views = method(name, **options), options.get("views", 1)
    learner = Learner(classifier(), objective)
    trained = learner if size == 1 else DistributedDataParallel(learner)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5, momentum=0.9)
    seen = []
    for number in range(steps):
        here = share(batch(seed=number, views=views), rank, size)
        terms = trained(seen_by(objective, here), number)
        terms["loss"].backward()
        gradients = {label: p.grad.clone() for label, p in learner.named_parameters()}
        seen.append(({label: term.item() for label, term in terms.items()}, gradients))
        optimizer.step()
        optimizer.zero_grad()
    return seen, objective.state_dict()


def run_share(name, size):
    return run(name, dist.get_rank(), size)


@pytest.mark.parametrize("name", METHODS)
def test_losses_gradients_and_statistics_are_those_of_one_rank(gloo, name):
    whole, state = run(name)
    for part, own_state in gloo.run(run_share, name, 2, size=2):
        for (terms, gradients), (mine, my_gradients) in zip(whole, part, strict=True):
            assert mine == pytest.approx(terms, rel=1e-4, abs=1e-6)
            for label, gradient in gradients.items():
                torch.testing.assert_close(my_gradients[label], gradient, rtol=1e-4, atol=1e-6)
        for label, value in state.items():
            torch.testing.assert_close(own_state[label], value, rtol=1e-5, atol=1e-7)
    assert whole[-1][0].get("mask_rate", 1.0) > 0  # there was something to be equal about
