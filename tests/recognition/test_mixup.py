"""MixUp: its lambda, and torchvision's mixture."""

import pytest
import torch
from torchvision.transforms import v2

from raykb.engine.seeding import generator
from raykb.recognition.mixture import mixture
from raykb.recognition.mixup import MixUp, mixup

DRAWS = 50_000


def lambdas(**settings):
    images = torch.zeros(1).expand(DRAWS, 1, 2, 2)
    return MixUp(per_sample=True, **settings).draw(images, generator(3)).kept.double()


def within_4_errors(values, wanted):
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) - wanted) < 4 * error


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lambda_is_of_the_beta_distribution(alpha):
    within_4_errors(lambdas(alpha=alpha), 0.5)
    within_4_errors((lambdas(alpha=alpha) - 0.5).square(), 0.25 / (2 * alpha + 1))


def test_the_dominant_share_of_alpha_one_fifth_is_nine_tenths():
    found = lambdas(alpha=0.2, dominant=True)
    assert found.min() >= 0.5
    # 1/2 and the mean absolute deviation of Beta(a, a), which is 2^(-2a) / (a B(a, a))
    a = torch.tensor(0.2, dtype=torch.float64)
    both = torch.exp(2 * torch.lgamma(a) - torch.lgamma(2 * a))
    wanted = float(0.5 + 2 ** (-2 * a) / (a * both))
    assert wanted == pytest.approx(0.90, abs=0.01)
    within_4_errors(found, wanted)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_with_the_same_lambda_it_is_torchvisions(lam):
    images, labels = torch.randn(5, 3, 8, 6, generator=generator(0)), torch.arange(5)
    theirs = v2.MixUp(num_classes=5)
    theirs._dist = type("Fixed", (), {"sample": lambda self, shape: torch.tensor(lam)})()
    wanted, targets = theirs(images, labels)
    share = torch.tensor([lam])
    ours = mixture(images, torch.arange(5).roll(1), share[:, None, None, None], share)
    torch.testing.assert_close(ours.applied(images, labels).images, wanted)
    torch.testing.assert_close(ours.targets(labels, 5), targets)


@pytest.mark.parametrize("per_sample", [False, True])
def test_images_and_shares_are_of_the_same_lambda(per_sample):
    images = torch.eye(6)[:, :, None, None].expand(6, 6, 3, 3)  # channel i is 1 in image i alone
    found = mixup(
        images,
        torch.arange(6),
        generator(1),
        probability=1.0,
        alpha=1.0,
        per_sample=per_sample,
    )
    shares = found.images.mean((2, 3))
    wanted = torch.zeros(6, 6).index_put((found.labels, found.labels), found.kept)
    wanted.index_put_((found.labels, found.others), 1 - found.kept, accumulate=True)
    torch.testing.assert_close(shares, wanted)
    assert (len(set(found.kept.tolist())) == 1) != per_sample


def test_with_probability_0_nothing_changes_by_a_bit():
    images = torch.randn(4, 1, 5, 5)
    found = mixup(images, torch.arange(4), generator(0), probability=0.0, alpha=1.0)
    assert torch.equal(found.images, images)
    assert (found.kept == 1).all()


def test_alpha_0_is_refused():
    with pytest.raises(ValueError, match="alpha: 0, must be above 0"):
        MixUp(alpha=0)
