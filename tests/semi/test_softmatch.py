import pytest
import torch
from shared_methods import WEAK, batch, classifier, method

from raykb.semi.consistency import confidence
from raykb.semi.softmatch import Running, aligned, gaussian_weights, updated


def test_the_golden_statistics_after_one_update():
    start = Running(torch.tensor(1 / 3, dtype=torch.float64), torch.tensor(1.0))
    highest = WEAK.double().softmax(1).amax(1)
    running = updated(start, highest, 0.999)
    assert running.mean.item() == pytest.approx(0.3338388, abs=5e-8)
    assert running.variance.item() == pytest.approx(0.9990518, abs=5e-8)
    assert gaussian_weights(highest, running, 2.0).tolist() == [1, 1, 1]


def test_weights_are_one_from_the_mean_on_and_fall_below_it():
    running = Running(torch.tensor(0.6), torch.tensor(0.04))
    weights = gaussian_weights(torch.tensor([0.2, 0.4, 0.6, 0.61, 1.0]), running, 2.0)
    # half of a width of two standard deviations is 0.2, one is 0.1
    assert weights.tolist() == pytest.approx([2.718282**-8, 2.718282**-2, 1, 1, 1], rel=1e-5)
    below = torch.linspace(0, 0.6, 50)
    assert (gaussian_weights(below, running, 1.0).diff() >= 0).all()


def test_confidences_that_are_all_equal_weigh_one():
    running = updated(Running(torch.tensor(0.5), torch.tensor(1.0)), torch.ones(4), 0.0)
    assert running.variance == 0
    assert gaussian_weights(torch.tensor([1.0, 0.9]), running, 2.0).tolist() == [1, 0]


def test_one_sample_has_no_variance_to_follow():
    start = Running(torch.tensor(0.5), torch.tensor(0.3))
    assert updated(start, torch.tensor([0.9]), 0.9).variance == pytest.approx(0.3)


def test_alignment_divides_by_the_running_mean():
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    marginal = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ratio = probabilities / marginal
    wanted = ratio / ratio.sum(1, keepdim=True)
    torch.testing.assert_close(aligned(probabilities, marginal), wanted, rtol=1e-5, atol=0)
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(aligned(probabilities, uniform), probabilities)


def test_labels_are_those_without_alignment_and_weights_those_with():
    seen = batch()
    plain = method("softmatch", align=False, momentum=0.5, width=3.0)
    model = classifier()
    highest, labels = confidence(model(seen.weak))
    terms = plain(model, seen, 0)
    running = updated(Running(torch.tensor(1 / 3), torch.tensor(1.0)), highest, 0.5)
    weights = gaussian_weights(highest, running, 3.0)
    losses = torch.nn.functional.cross_entropy(model(seen.strong[:, 0]), labels, reduction="none")
    assert terms["loss_unlabelled"].item() == pytest.approx((weights * losses).mean().item())
    assert terms["threshold"].item() == pytest.approx(running.mean.item())
    assert torch.equal(plain.marginal, torch.full((3,), 1 / 3))

    with_alignment = method("softmatch", momentum=0.0)
    found = with_alignment(model, seen, 0)
    probabilities = model(seen.weak).detach().softmax(1)
    torch.testing.assert_close(with_alignment.marginal, probabilities.mean(0))
    high = aligned(probabilities, probabilities.mean(0)).amax(1)
    assert found["threshold"].item() == pytest.approx(high.mean().item())
    assert [found[f"class_share/{c}"] for c in range(3)] == [
        terms[f"class_share/{c}"] for c in range(3)
    ]
