"""Two ranks with half of each batch train as one rank with the whole, patches and regions, too."""

import pytest
import torch
import torch.distributed as dist
from shared_patches import boxed, convolutions, corrupted, masked, transformer
from torch.nn.parallel import DistributedDataParallel

from raykb.engine.objective import Learner, Task
from raykb.selfsup import METHODS

SEEN = {
    "mae": (transformer, lambda seed: masked(0.75, seed=seed), {"decoder_width": 12}),
    "simmim": (transformer, lambda seed: masked(0.6, seed=seed), {}),
    "gmml": (transformer, lambda seed: corrupted(seed=seed), {}),
    "scrl": (
        convolutions,
        # the second rank has one image with regions, then none
        lambda seed: boxed(seed=seed, valid=[True, False, not seed, False]),
        {"projection": 5, "hidden": 7, "count": 3},
    ),
}


def run(name, rank=0, size=1, steps=3):
    """Return the terms and the gradients of some steps, and the state that is left."""
    network, batch, options = SEEN[name]
    own = network()
    torch.manual_seed(3)
    learner = Learner(own, METHODS[name](Task(own, steps=10), **options)).double()
    trained = learner if size == 1 else DistributedDataParallel(learner)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for number in range(steps):
        here = [part.chunk(size)[rank] for part in batch(number)]
        here = [part.double() if part.is_floating_point() else part for part in here]
        terms = trained(type(batch(number))(*here), number)
        terms["loss"].backward()
        gradients = {
            label: p.grad.clone() for label, p in learner.named_parameters() if p.requires_grad
        }
        seen.append(({label: term.item() for label, term in terms.items()}, gradients))
        optimizer.step()
        optimizer.zero_grad()
        learner.objective.after_step(own, number)
    return seen, learner.state_dict()


def run_share(name, size):
    return run(name, dist.get_rank(), size)


@pytest.mark.parametrize("name", SEEN)
def test_losses_gradients_and_state_are_those_of_one_rank(gloo, name):
    whole, state = run(name)
    for part, own_state in gloo.run(run_share, name, 2, size=2):
        for (terms, gradients), (mine, my_gradients) in zip(whole, part, strict=True):
            assert mine == pytest.approx(terms, rel=1e-8, abs=1e-10)
            for label, gradient in gradients.items():
                torch.testing.assert_close(my_gradients[label], gradient, rtol=1e-7, atol=1e-9)
        for label, value in state.items():
            torch.testing.assert_close(own_state[label], value, rtol=1e-7, atol=1e-9)
    assert any(gradient.any() for gradient in whole[-1][1].values())
