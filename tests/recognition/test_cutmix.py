"""CutMix: the closed forms of its draws, torchvision's, and pixels that are counted."""

import math

import pytest
import torch
from torchvision.transforms import v2

from raykb.engine.seeding import generator
from raykb.recognition.cutmix import CutMix, cut_sides, cutmix
from raykb.recognition.draws import boxes_around, outside, uncovered
from raykb.recognition.mixture import mixture

DRAWS = 50_000


def drawn(size, **settings):
    """Return the mixture of 50,000 images, each with draws of its own."""
    images = torch.zeros(1).expand(DRAWS, 1, *size)
    return CutMix(**{"probability": 1.0, "per_sample": True} | settings).draw(images, generator(3))


def within_4_errors(values, wanted):
    error = float(values.double().std()) / len(values) ** 0.5
    assert abs(float(values.double().mean()) - wanted) < 4 * error


def exact_mean(side):
    """Return the mean of the labels' lambda by its sum over sides and centres, alpha 1."""
    covered = 0.0
    for cut in range(side):  # int(side sqrt(u)) is this of a share of all u
        share = ((cut + 1) ** 2 - cut**2) / side**2
        spans = [min(c + cut // 2, side) - max(c - cut // 2, 0) for c in range(side)]
        covered += share * (sum(spans) / side**2) ** 2
    return 1.0 - covered


# Closed forms


@pytest.mark.parametrize(("side", "published"), [(32, 0.7005), (64, None)])
def test_the_mean_share_is_that_of_the_sum_over_all_boxes(side, published):
    wanted = exact_mean(side)
    if published is not None:
        assert wanted == pytest.approx(published, abs=4e-4)
    within_4_errors(drawn((side, side)).kept, wanted)


def test_of_large_images_it_nears_the_integral():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    integral = 1.0 - float((u.sqrt() - u / 4).square().mean())
    assert integral == pytest.approx(0.6792, abs=1e-4)
    assert exact_mean(512) == pytest.approx(integral, abs=2e-3)


def test_so_many_boxes_are_empty():
    within_4_errors((drawn((32, 32)).kept == 1.0), 4 / 1024)


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.2, 1 / 5.6)])
def test_without_correction_lambda_is_of_the_beta_distribution(alpha, variance):
    lam = drawn((32, 32), correct_lam=False, alpha=alpha).kept.double()
    within_4_errors(lam, 0.5)
    within_4_errors((lam - 0.5).square(), variance)


@pytest.mark.parametrize("per_sample", [False, True])
def test_so_many_batches_or_images_are_mixed(per_sample):
    if per_sample:
        mixed = drawn((32, 32), probability=0.3).kept < 1.0
    else:
        images, numbers = torch.zeros(2, 1, 32, 32), generator(1)
        mixes = CutMix(probability=0.3)
        mixed = torch.stack([mixes.draw(images, numbers).kept[0] < 1.0 for _ in range(2000)])
    within_4_errors(mixed, 0.3 * (1 - 4 / 1024))


def test_a_pixel_is_covered_by_the_boxes_of_all_centres_around_it():
    masks = drawn((8, 16), alpha=1e9).masks  # lambda 0.5: all boxes of 4 by 10, before they are cut
    rows, columns = (
        torch.tensor(
            [len(range(max(p - half + 1, 0), min(p + half, side - 1) + 1)) for p in pixels]
        )
        for half, side, pixels in ((2, 8, range(8)), (5, 16, range(16)))
    )
    wanted = rows[:, None] * columns / (8 * 16)
    torch.testing.assert_close((~masks).float().mean(0)[0], wanted, atol=0.01, rtol=0.0)


# torchvision


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("lam", [0.0, 0.13, 0.5, 0.97, 1.0])
def test_with_the_same_draws_it_is_torchvisions_bit_for_bit(size, lam):
    images, labels = torch.randn(5, 3, *size, generator=generator(0)), torch.arange(5)
    for seed in range(10):
        theirs = v2.CutMix(num_classes=5)
        theirs._dist = type("Fixed", (), {"sample": lambda self, shape: torch.tensor(lam)})()
        torch.manual_seed(seed)
        wanted, targets = theirs(images, labels)
        torch.manual_seed(seed)
        x, y = (torch.randint(side, (1,)) for side in reversed(size))
        sides = cut_sides(torch.tensor([lam], dtype=torch.float64), size)
        boxes = boxes_around(torch.stack([y, x], 1), sides, size)
        ours = mixture(
            images, torch.arange(5).roll(1), outside(boxes, size), uncovered(boxes, size)
        )
        assert torch.equal(ours.applied(images, labels).images, wanted)
        torch.testing.assert_close(ours.targets(labels, 5), targets)


# Pixels and labels


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("size", [(24, 40), (7, 5)])
def test_the_kept_share_is_that_of_counted_pixels(size, per_sample):
    for seed in range(20):
        images = torch.stack([torch.full((3, *size), float(n)) for n in range(6)])
        found = cutmix(
            images,
            torch.arange(6),
            generator(seed),
            probability=1.0,
            alpha=1.0,
            per_sample=per_sample,
        )
        own = torch.arange(6)[:, None, None, None]
        counted = (found.images == own).float().mean((1, 2, 3))
        itself = found.others == found.labels
        torch.testing.assert_close(counted[~itself], found.kept[~itself])
        other = found.others[:, None, None, None]
        assert ((found.images == own) | (found.images == other)).all()


def test_without_correction_the_box_is_the_same_and_the_share_is_lambdas():
    images, labels = torch.randn(4, 1, 16, 16, generator=generator(1)), torch.arange(4)
    cut, uncut = (
        cutmix(images, labels, generator(5), probability=1.0, alpha=1.0, correct_lam=correct)
        for correct in (True, False)
    )
    assert torch.equal(cut.images, uncut.images)
    assert (cut.kept >= uncut.kept).all()
    assert not torch.equal(cut.kept, uncut.kept)


def test_a_batch_has_one_box_and_images_have_their_own_on_request():
    images = torch.zeros(6, 1, 32, 32)
    one = CutMix(probability=1.0).draw(images, generator(2))
    each = CutMix(probability=1.0, per_sample=True).draw(images, generator(2))
    assert (one.masks == one.masks[:1]).all()
    assert len(set(each.kept.tolist())) > 3


def test_two_images_swap_their_boxes_and_the_input_stays():
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    before, swapped = images.clone(), 0
    for seed in range(20):
        found = cutmix(images, torch.arange(2), generator(seed), probability=1.0, alpha=1.0)
        assert torch.equal(images, before)
        if found.others.tolist() == [1, 0]:  # what is read was not written before
            assert torch.equal(found.images[0], 1.0 - found.images[1])
            swapped += int(0 < found.images[0].mean() < 1)
    assert swapped > 3


def test_soft_labels_travel_with_their_images():
    images, labels = torch.randn(4, 1, 8, 8), torch.eye(4)
    found = cutmix(images, labels, generator(0), probability=1.0, alpha=1.0)
    assert torch.equal(found.others, labels[found.others.argmax(1)])


# Refused


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"alpha": 0.0}, "alpha: 0.0, must be above 0"),
        ({"probability": 1.5}, r"probability: 1.5, must be in 0..1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        CutMix(**settings)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4).byte()])
def test_what_are_no_normalised_images_is_refused(images):
    with pytest.raises(ValueError, match=r"images: torch.* must be floating-point.*normalisation"):
        cutmix(images, torch.arange(2), generator(0), probability=0.5, alpha=1.0)


def test_sides_are_those_of_a_box_of_the_share():
    sides = cut_sides(torch.tensor([0.0, 0.75, 1.0], dtype=torch.float64), (24, 40))
    assert sides.tolist() == [[24, 40], [12, 20], [0, 0]]
    assert math.isclose(float(uncovered(torch.tensor([[6, 10, 18, 30]]), (24, 40))), 0.75)
