"""What an objective is told and how it is made a step; tests/contracts has what every one holds."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from raykb.engine.objective import (
    CrossEntropy,
    LabelledBatch,
    Learner,
    Objective,
    Task,
    learning_step,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))


def batch(size=5):
    numbers = torch.Generator().manual_seed(1)
    return LabelledBatch(torch.randn(size, 3, 2, 2, generator=numbers), torch.arange(size) % 3)


def cross_entropy(network, **options):
    return CrossEntropy(Task(network, 20, 3), **options)


# Task


def test_a_task_that_contradicts_itself_is_refused_with_every_problem(network):
    with pytest.raises(
        ValueError,
        match=r"steps: 0, must be at least 1; classes: -1, must be at least 0; ids: must ascend, "
        r"each once; sort them; truths: \(3,\) for ids of shape \(2,\); must be one for each",
    ):
        Task(network, 0, -1, torch.tensor([2, 2]), torch.zeros(3))


@pytest.mark.parametrize("ids", [[2, 1], [1, 2, 2]])
def test_ids_must_ascend_each_once(network, ids):
    with pytest.raises(ValueError, match=r"^ids: must ascend, each once; sort them$"):
        Task(network, 1, ids=torch.tensor(ids))


def test_true_labels_of_no_ids_are_refused(network):
    with pytest.raises(ValueError, match=r"truths: \(2,\) for ids of shape None; must be one for"):
        Task(network, 1, truths=torch.zeros(2))


def test_a_task_needs_neither_classes_nor_ids_and_its_ids_may_have_no_values_yet(network):
    assert Task(network, 1).classes == 0
    ids = torch.tensor([2, 1], device="meta")
    assert Task(network, 1, ids=ids, truths=ids).ids is ids


# Cross entropy


def test_the_loss_is_the_closed_form_of_uniform_logits():
    class Zero(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 3)

    loss = cross_entropy(Zero())(Zero(), batch(), 0)["loss"]
    assert loss.item() == pytest.approx(torch.tensor(3.0).log())


def test_label_smoothing_spreads_its_share_over_all_classes(network):
    logs = -network(batch().images).log_softmax(1)
    plain, uniform = logs[torch.arange(5), batch().labels].mean(), logs.mean()
    loss = cross_entropy(network, label_smoothing=0.1)(network, batch(), 0)["loss"]
    assert loss.item() == pytest.approx((0.9 * plain + 0.1 * uniform).item())


def test_label_smoothing_out_of_range_is_refused(network):
    with pytest.raises(ValueError, match=r"label_smoothing: 1.0, must be in \[0, 1\)"):
        cross_entropy(network, label_smoothing=1.0)


# Steps


class Headed(Objective):
    """Puts a head on the network."""

    class Images(NamedTuple):
        images: Tensor

    sees = Images

    def __init__(self, task):
        super().__init__(task)
        self.head = nn.Linear(3, 1)

    def forward(self, network, batch, step):
        return {"loss": self.head(network(batch.images)).mean() * step}


def test_a_learner_holds_network_and_heads_and_the_step_has_gone_backward(network):
    learner = Learner(network, Headed(Task(network, 1)))
    names = {name for name, _ in learner.named_parameters()}
    assert {"network.1.weight", "objective.head.weight"} < names
    terms = learning_step(learner)(Headed.Images(batch().images), 2)
    assert not terms["loss"].requires_grad
    assert terms["loss"] == 2 * learner.objective.head(network(batch().images)).mean()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_bf16_runs_the_forward_pass_in_bfloat16_and_keeps_fp32_parameters(network):
    seen = []
    network[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    learning_step(Learner(network, cross_entropy(network)), precision="bf16")(batch(), 0)
    assert seen == [torch.bfloat16]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())


def test_an_unknown_precision_is_refused(network):
    with pytest.raises(ValueError, match="precision: 'fp16', must be 'fp32' or 'bf16'"):
        learning_step(Learner(network, cross_entropy(network)), precision="fp16")


def test_terms_without_a_loss_are_an_error_that_names_them(network):
    class Nameless(Headed):
        def forward(self, network, batch, step):
            return {"cost": network(batch.images).sum()}

    with pytest.raises(
        KeyError, match=r"Nameless returned the terms \['cost'\]: 'loss' is missing"
    ):
        learning_step(Learner(network, Nameless(Task(network, 1))))(batch(), 0)
