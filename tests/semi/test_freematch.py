import pytest
import torch
from shared_methods import WEAK, batch, classifier, logits, method

from raykb.semi.consistency import confidence
from raykb.semi.freematch import Running, adaptive_thresholds, fairness, updated


def start(classes=3):
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    return Running(uniform[0], uniform, uniform)


def test_the_golden_threshold_after_one_update():
    running = updated(start(), WEAK, 0.999)
    assert running.threshold.item() == pytest.approx(0.3338388, abs=5e-8)
    highest, labels = confidence(WEAK)
    assert (highest >= adaptive_thresholds(running)[labels]).all()
    assert running.histogram.tolist() == pytest.approx(
        [0.333 + 0.001 * share for share in (2 / 3, 1 / 3, 0)]
    )
    mean = WEAK.softmax(1).mean(0)
    assert running.probabilities.tolist() == pytest.approx((0.333 + 0.001 * mean).tolist())


def test_uniform_probabilities_have_one_threshold_and_others_lower_it_for_rare_classes():
    assert adaptive_thresholds(start()).tolist() == pytest.approx([1 / 3] * 3)
    rare = start()._replace(probabilities=torch.tensor([0.5, 0.25, 0.25]))
    assert adaptive_thresholds(rare).tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6])


def test_the_threshold_can_be_clipped():
    sure = logits([50, 0, 0])
    assert updated(start(), sure, 0.0).threshold == 1.0
    assert updated(start(), sure, 0.0, clip=0.95).threshold == pytest.approx(0.95)
    objective = method("freematch", momentum=0.0, clip=0.4)
    objective(classifier(), batch(), 0)
    assert objective.threshold == pytest.approx(0.4)


def naive_fairness(strong, confident, running):
    chosen = [row.softmax(0) for row, sure in zip(strong, confident, strict=True) if sure]
    classes = strong.shape[1]
    found = [float(sum(row.argmax() == c for row in chosen)) / len(chosen) for c in range(classes)]
    mean = sum(chosen) / len(chosen)
    ours = [m / h if h else 0.0 for m, h in zip(mean.tolist(), found, strict=True)]
    p, h = running.probabilities.tolist(), running.histogram.tolist()
    wanted = [a / b if b else 0.0 for a, b in zip(p, h, strict=True)]
    total = 0.0
    for want, have in zip(wanted, ours, strict=True):
        share = torch.tensor(have / sum(ours) + 1e-12, dtype=torch.float64)
        total += want / sum(wanted) * torch.log(share).item()
    return total


@pytest.mark.parametrize("seed", range(4))
def test_fairness_is_the_cross_entropy_of_balanced_shares(seed):
    numbers = torch.Generator().manual_seed(seed)
    strong = 2 * torch.randn(9, 4, generator=numbers, dtype=torch.float64)
    confident = torch.rand(9, generator=numbers) < 0.7
    running = Running(
        torch.tensor(0.5),
        torch.rand(4, generator=numbers, dtype=torch.float64),
        torch.tensor([0.5, 0.25, 0.25, 0.0 if seed else 0.1], dtype=torch.float64),
    )
    found = fairness(strong, confident, running).item()
    assert found == pytest.approx(naive_fairness(strong, confident, running), rel=1e-9)


def test_a_class_that_nothing_falls_into_for_long_counts_as_empty():
    uniform = torch.full((3,), 1 / 3)
    shrunk, empty = (  # 1/3 times 0.999 to the power of 90,000 and more has no float32 inverse
        fairness(WEAK, torch.ones(3, dtype=torch.bool), Running(uniform[0], uniform, histogram))
        for histogram in (torch.tensor([0.5, 0.5, 1e-40]), torch.tensor([0.5, 0.5, 0.0]))
    )
    assert shrunk.isfinite()
    assert shrunk == empty


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_fairness_of_nothing_is_exactly_zero_and_still_in_the_graph(scale):
    strong = (scale * WEAK).requires_grad_()
    loss = fairness(strong, torch.zeros(3, dtype=torch.bool), start())
    loss.backward()
    assert loss == 0
    assert torch.equal(strong.grad, torch.zeros(3, 3))


def test_fairness_has_gradient_where_samples_are_confident():
    strong = torch.randn(6, 3, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    confident = torch.tensor([True, False, True, True, False, True])
    assert torch.autograd.gradcheck(lambda x: fairness(x, confident, start()), strong)
    fairness(strong, confident, start()).backward()
    assert torch.equal(strong.grad.abs().sum(1) > 0, confident)


def test_the_objective_follows_before_it_decides_and_adds_up():
    objective = method("freematch", fairness_weight=0.5, unlabelled_weight=2.0, momentum=0.9)
    model, seen = classifier(), batch()
    terms = objective(model, seen, 0)
    highest, _ = confidence(model(seen.weak))
    assert terms["threshold"].item() == pytest.approx(0.9 / 3 + 0.1 * highest.mean().item())
    total = terms["loss_labelled"] + 2.0 * terms["loss_unlabelled"] + 0.5 * terms["loss_fairness"]
    assert terms["loss"].item() == pytest.approx(total.item())
    assert terms["loss_fairness"] < 0
