"""Cross entropy and soft Dice are the formulas', MONAI's, and those of one rank on two."""

import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raykb.engine.objective import Learner, Task, learning_step
from raykb.models.planned_unet import unet_3d
from raykb.segmentation import METHODS
from raykb.segmentation.losses import (
    DiceCrossEntropy,
    VoxelBatch,
    at_level,
    soft_dice,
    supervision_weights,
)

CLASSES = 3


def labels_and_logits(samples=4, seed=0, size=(3, 4, 5), kind=torch.float64):
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples, *size), generator=numbers)
    return labels, 3 * torch.randn(samples, CLASSES, *size, generator=numbers, dtype=kind)


def one_hot(labels, factor=100.0):
    return factor * nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).double()


# The formula


def reference(logits, labels, batch, smooth):
    """Return soft Dice, a class of a sample at a time."""
    p = logits.softmax(1)
    groups = [slice(None)] if batch else range(len(labels))
    dices = []
    for group in groups:
        for k in range(1, CLASSES):
            mine, true = (p[:, k][group], (labels == k)[group].double())
            dices.append((2 * (mine * true).sum() + smooth) / (mine.sum() + true.sum() + smooth))
    return sum(dices) / len(dices)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
@pytest.mark.parametrize("size", [(3, 4, 5), (6, 7)])
def test_soft_dice_is_the_formulas(batch, smooth, size):
    labels, logits = labels_and_logits(size=size)
    wanted = reference(logits, labels, batch, smooth)
    assert soft_dice(logits, labels, batch=batch, smooth=smooth).item() == pytest.approx(
        wanted.item(), abs=1e-12
    )


def test_a_batch_has_another_dice_than_the_mean_of_its_samples():
    labels, logits = labels_and_logits()
    labels[0] = 0
    assert soft_dice(logits, labels, batch=True) > soft_dice(logits, labels) + 0.01


def test_a_perfect_prediction_has_dice_1_and_no_loss():
    labels, _ = labels_and_logits()
    assert soft_dice(one_hot(labels), labels).item() == pytest.approx(1.0, abs=1e-12)
    terms = objective()(lambda images: one_hot(labels), VoxelBatch(labels, labels), 0)
    assert terms["loss"].item() == pytest.approx(0.0, abs=1e-12)


def test_nothing_but_background_has_nearly_no_dice():
    labels, _ = labels_and_logits()
    nothing = one_hot(torch.zeros_like(labels))
    assert 0 < soft_dice(nothing, labels) < 1e-3


def test_the_background_is_of_no_account():
    labels = torch.tensor([[0, 0, 0, 1, 2]])
    right, wrong = one_hot(labels), one_hot(torch.tensor([[0, 0, 0, 1, 0]]))
    assert soft_dice(right, labels).item() == pytest.approx(1.0)
    assert soft_dice(wrong, labels).item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("smooth", [1e-5, 0.5])
def test_the_loss_is_monais(batch, smooth):
    losses = pytest.importorskip("monai.losses", reason="in the extra 'medical'")
    theirs = losses.DiceCELoss(
        include_background=False,
        softmax=True,
        to_onehot_y=True,
        batch=batch,
        smooth_nr=smooth,
        smooth_dr=smooth,
    )
    labels, logits = labels_and_logits(kind=torch.float32)
    ours = objective(batch_dice=batch, smooth=smooth)
    terms = ours(lambda images: logits, VoxelBatch(labels, labels), 0)
    assert terms["loss"].item() == pytest.approx(theirs(logits, labels[:, None]).item(), abs=1e-6)


# Deep supervision


@pytest.mark.parametrize(
    ("outputs", "weights"),
    [
        (1, [1.0]),
        (2, [1.0, 0.0]),
        (4, [0.571429, 0.285714, 0.142857, 0.0]),
        (5, [0.533333, 0.266667, 0.133333, 0.066667, 0.0]),
    ],
)
def test_weights_halve_from_level_to_level_and_end_at_0(outputs, weights):
    assert supervision_weights(outputs) == pytest.approx(weights, abs=1e-6)


def test_labels_of_a_coarser_level_are_the_nearest():
    labels = torch.arange(8).reshape(1, 2, 4)
    assert at_level(labels, torch.zeros(1, 9, 2, 2)).tolist() == [[[1, 3], [5, 7]]]
    assert at_level(labels, torch.zeros(1, 9, 2, 4)) is labels


def test_the_loss_is_the_weighted_sum_over_the_levels():
    labels, fine = labels_and_logits(size=(4, 4, 4))
    outputs = [fine, fine[..., ::2, ::2, ::2], fine[..., ::4, ::4, ::4]]
    batch = VoxelBatch(labels, labels)
    single = [
        objective()(lambda images, o=o: o, VoxelBatch(labels, at_level(labels, o)), 0)["loss"]
        for o in outputs
    ]
    for form in (list, tuple):
        terms = objective()(lambda images, form=form: form(outputs), batch, 0)
        wanted = (2 * single[0] + single[1]) / 3
        assert terms["loss"].item() == pytest.approx(wanted.item(), rel=1e-12)
        assert terms["soft_dice"] == soft_dice(fine, labels)
        assert terms["cross_entropy"] == nn.functional.cross_entropy(fine, labels)


# What every objective must do, with a network of voxels


def objective(network=None, **options):
    task = Task(network or nn.Linear(1, 1), 10, CLASSES)
    return METHODS["dice_cross_entropy"](task, **options)


def learner(seed=0, **options):
    torch.manual_seed(seed)
    network = unet_3d(CLASSES, width=4, depth=2, deep_supervision=True)
    return Learner(network, objective(network, **options))


def batch(samples=2, seed=0):
    labels, _ = labels_and_logits(samples, seed, size=(8, 8, 8))
    numbers = torch.Generator().manual_seed(seed + 1)
    return VoxelBatch(torch.randn(samples, 1, 8, 8, 8, generator=numbers) + labels[:, None], labels)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_terms_are_finite_scalars_and_only_the_loss_has_gradient(batch_dice):
    terms = learner(batch_dice=batch_dice)(batch(), 0)
    assert terms.keys() == {"loss", "cross_entropy", "soft_dice"}
    for name, term in terms.items():
        assert term.shape == (), name
        assert term.isfinite(), name
        assert term.requires_grad == (name == "loss"), name


def test_under_autocast_the_loss_is_summed_in_float32():
    whole = learner()
    terms = learning_step(whole, precision="bf16")(batch(), 0)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert terms["loss"].item() == pytest.approx(learner()(batch(), 0)["loss"].item(), rel=0.05)


def test_a_float64_network_is_not_rounded():
    images, labels = batch()
    loss = learner().double()(VoxelBatch(images.double(), labels), 0)["loss"]
    assert loss.dtype == torch.float64
    assert loss.float().double() != loss


def test_it_pickles():
    whole = learner(batch_dice=True, smooth=0.1)
    again = pickle.loads(pickle.dumps(whole))
    assert torch.equal(again(batch(), 0)["loss"], whole(batch(), 0)["loss"])


def test_a_few_steps_find_what_is_bright():
    whole = learner()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    step, seen = learning_step(whole), []
    for number in range(15):
        seen.append(step(batch(), number)["loss"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert seen[-1] < 0.7 * seen[0]


def test_a_smooth_that_defines_nothing_is_refused():
    with pytest.raises(ValueError, match="smooth: 0, must be above 0"):
        DiceCrossEntropy(Task(nn.Linear(1, 1), 1), smooth=0)


# Ranks


def run(batch_dice, rank=0, size=1):
    whole = learner(batch_dice=batch_dice)
    trained = whole if size == 1 else DistributedDataParallel(whole)
    images, labels = batch(samples=4)
    share = VoxelBatch(images.chunk(size)[rank], labels.chunk(size)[rank])
    trained(share, 0)["loss"].backward()
    return {name: parameter.grad.clone() for name, parameter in whole.named_parameters()}


def run_share(batch_dice, size):
    return run(batch_dice, dist.get_rank(), size)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradients_of_two_ranks_are_those_of_one(gloo, batch_dice):
    whole = run(batch_dice)
    for part in gloo.run(run_share, batch_dice, 2, size=2):
        for name, gradient in whole.items():
            torch.testing.assert_close(part[name], gradient, rtol=1e-4, atol=1e-6)
