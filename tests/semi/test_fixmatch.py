import pytest
import torch
from shared_methods import STRONG, WEAK, batch, classifier, method

from raykb.semi.consistency import confidence, masked_cross_entropy
from raykb.semi.fixmatch import fixmatch_loss


def naive(weak, strong, threshold):
    total = 0.0
    for teacher, student in zip(weak, strong, strict=True):
        highest, label = teacher.softmax(0).max(0)
        if highest >= threshold:
            total = total - student.log_softmax(0)[label]
    return total / len(weak)


def test_the_golden_value():
    highest, labels = confidence(WEAK)
    assert highest.tolist() == pytest.approx([0.9647, 0.5761, 0.9756], abs=5e-5)
    assert labels.tolist() == [0, 0, 1]
    assert fixmatch_loss(WEAK, STRONG, 0.95).item() == pytest.approx(0.367630, abs=5e-7)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("count", [1, 7])
def test_it_is_the_sum_over_the_confident_divided_by_all(threshold, count):
    numbers = torch.Generator().manual_seed(count)
    weak, strong = 2 * torch.randn(2, count, 4, generator=numbers, dtype=torch.float64)
    loss = fixmatch_loss(weak, strong, threshold)
    assert float(loss) == pytest.approx(float(naive(weak, strong, threshold)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_and_sums_in_float32(dtype):
    weak = torch.tensor([[2.90625, 0.0]], dtype=dtype)  # 0.9481, which is 0.9492 in bfloat16
    strong = torch.tensor([[-4e4, 4e4]], dtype=dtype).requires_grad_()  # 8e4 is inf in float16
    unsure = fixmatch_loss(weak, strong, 0.95)
    unsure.backward()
    assert unsure.item() == 0
    assert torch.equal(strong.grad, torch.zeros_like(strong))
    loss = fixmatch_loss(weak, strong, 0.94)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(8e4, rel=0.01)


def test_of_no_samples_the_loss_is_zero():
    strong = torch.empty(0, 3, requires_grad=True)
    loss = fixmatch_loss(torch.empty(0, 3), strong, 0.95)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (3,)])
def test_logits_of_other_images_or_classes_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits_weak, logits_strong: \(3, 3\) and \("):
        fixmatch_loss(WEAK, torch.zeros(shape), 0.95)


def test_the_target_gets_no_gradient():
    weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
    fixmatch_loss(weak, strong, 0.95).backward()
    assert weak.grad is None
    assert (strong.grad.abs().sum(1) > 0).tolist() == [True, False, True]


def test_means_divide_by_all_samples_and_not_by_the_weights():
    halves = masked_cross_entropy(STRONG, torch.tensor([0, 0, 1]), torch.full((3,), 0.5))
    whole = masked_cross_entropy(STRONG, torch.tensor([0, 0, 1]), torch.ones(3))
    assert halves.item() == pytest.approx(whole.item() / 2)


def test_the_loss_is_made_of_its_parts():
    objective = method("fixmatch", threshold=0.3, unlabelled_weight=2.0)
    terms = objective(classifier(), batch(), 0)
    assert terms["loss_unlabelled"] > 0
    assert terms["loss"].item() == pytest.approx(
        (terms["loss_labelled"] + 2.0 * terms["loss_unlabelled"]).item()
    )
