import pytest
import torch
from judged import judged
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from raykb.evaluate.backbone import Features
from raykb.evaluate.linear_probe import LinearProbe


def features(count, seed, classes=3, width=5):
    """Return features whose class is in their mean, under noise."""
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return Features(centres[labels] + torch.randn(count, width, generator=numbers), labels)


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1])
def test_the_layer_is_that_of_logistic_regression(weight_decay):
    train = features(60, 0)
    weight, bias = LinearProbe(weight_decay=weight_decay).solved(train.rows, train.labels, 3)
    theirs = LogisticRegression(C=1 / (60 * weight_decay), tol=1e-8, max_iter=1000)
    theirs.fit(train.rows.double().numpy(), train.labels.numpy())
    torch.testing.assert_close(weight.double(), torch.from_numpy(theirs.coef_), rtol=0, atol=1e-3)
    mine = train.rows @ weight.T + bias
    other = torch.from_numpy(theirs.decision_function(train.rows.double().numpy()))
    torch.testing.assert_close(mine.softmax(1).double(), other.softmax(1), rtol=0, atol=1e-3)


def test_the_gradient_is_zero_at_the_end():
    train, probe = features(90, 1), LinearProbe(weight_decay=0.01)
    weight, bias = (part.requires_grad_() for part in probe.solved(train.rows, train.labels, 3))
    loss = F.cross_entropy(train.rows @ weight.T + bias, train.labels)
    loss = loss + 0.01 / 2 * weight.square().sum()
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4


def test_shift_and_scale_of_a_feature_say_nothing_and_one_that_never_changes_does_no_harm():
    train, test = features(60, 0), features(40, 1)
    plain = LinearProbe()(judged(train, test))
    assert plain.figures["top1"] > 0.6
    scale, shift = torch.tensor([1.0, 100.0, 0.01, 5.0, 1.0]), torch.tensor([0, 7, 1, 0, 3])
    rows = [part.rows * scale + shift for part in (train, test)]
    still = [torch.cat([own, torch.full((len(own), 1), 4.0)], 1) for own in rows]
    others = (Features(still[0], train.labels), Features(still[1], test.labels))
    assert LinearProbe()(judged(*others)).figures == pytest.approx(plain.figures, abs=0.03)


def test_fewer_iterations_end_earlier():
    train = features(60, 0)

    def loss(iterations):
        weight, bias = LinearProbe(iterations=iterations).solved(train.rows, train.labels, 3)
        return F.cross_entropy(train.rows @ weight.T + bias, train.labels).item()

    assert loss(1) > loss(3) > loss(50)


def test_features_that_know_nothing_are_worth_what_chance_is():
    numbers = torch.Generator().manual_seed(0)
    train, test = (
        Features(torch.randn(600, 5, generator=numbers), torch.arange(600) % 3) for _ in range(2)
    )
    sd = (2 / 9 / 600) ** 0.5
    assert LinearProbe()(judged(train, test)).figures["top1"] == pytest.approx(1 / 3, abs=3 * sd)


def test_a_class_that_no_training_image_has_is_never_right():
    train, test = features(30, 0), Features(features(6, 1).rows, torch.full((6,), 7))
    assert LinearProbe()(judged(train, test)).figures["top1"] == 0.0


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="weight_decay: -1, must be at least 0; iterations: 0"):
        LinearProbe(weight_decay=-1, iterations=0)
