"""The contract of an objective, held by every one there is."""

import copy
import pickle

import pytest
import torch
from torch import nn

from raykb.engine.objective import CrossEntropy, Objective, objective_step

OBJECTIVES = {
    "cross_entropy": lambda: CrossEntropy(),
    "cross_entropy_smoothed": lambda: CrossEntropy(label_smoothing=0.1),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]()


def batch(size=5):
    numbers = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 2, 2, generator=numbers), torch.arange(size) % 3


@pytest.mark.parametrize("size", [1, 5])
def test_terms_are_finite_scalars_and_only_the_loss_has_gradient(objective, model, size):
    terms = objective(model, batch(size), 0)
    assert terms["loss"].requires_grad
    for name, term in terms.items():
        assert term.shape == ()
        assert torch.isfinite(term)
        assert name == "loss" or not term.requires_grad


def test_every_parameter_gets_gradient(objective, model):
    objective_step(objective, model)(batch(), 0)
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_same_seed_same_terms(objective, model):
    torch.manual_seed(2)
    first = objective_step(objective, model)(batch(), 3)
    torch.manual_seed(2)
    second = objective_step(objective, model)(batch(), 3)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_restored_copy_goes_on_alike(objective, model):
    objective.after_step(model, 0)
    fresh = copy.deepcopy(objective)
    fresh.load_state_dict(objective.state_dict())
    assert torch.equal(objective(model, batch(), 1)["loss"], fresh(model, batch(), 1)["loss"])


def test_it_pickles(objective, model):
    again = pickle.loads(pickle.dumps(objective))
    assert torch.equal(objective(model, batch(), 0)["loss"], again(model, batch(), 0)["loss"])


def test_the_loss_is_the_closed_form_of_uniform_logits():
    class Zero(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 3)

    assert CrossEntropy()(Zero(), batch(), 0)["loss"].item() == pytest.approx(
        torch.tensor(3.0).log()
    )


def test_label_smoothing_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing: 1.0, must be in \[0, 1\)"):
        CrossEntropy(label_smoothing=1.0)


def test_bf16_runs_the_forward_pass_in_bfloat16_and_keeps_fp32_parameters(model):
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    objective_step(CrossEntropy(), model, precision="bf16")(batch(), 0)
    assert seen == [torch.bfloat16]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_an_unknown_precision_is_refused(model):
    with pytest.raises(ValueError, match="precision: 'fp16', must be 'fp32' or 'bf16'"):
        objective_step(CrossEntropy(), model, precision="fp16")


def test_terms_without_a_loss_are_an_error_that_names_them(model):
    class Nameless(Objective):
        def forward(self, model, batch, step):
            return {"cost": model(batch[0]).sum()}

    with pytest.raises(
        KeyError, match=r"Nameless returned the terms \['cost'\]: 'loss' is missing"
    ):
        objective_step(Nameless(), model)(batch(), 0)
