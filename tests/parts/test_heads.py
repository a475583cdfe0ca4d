import pytest
import torch
from torch import nn

from raykb.parts.heads import normalised_head, projection_head


def test_a_projection_is_linear_leaky_linear():
    head = projection_head(6, 4, hidden=5, negative_slope=0.5)
    features = torch.randn(3, 6)
    hidden = features @ head[0].weight.T + head[0].bias
    wanted = torch.where(hidden > 0, hidden, 0.5 * hidden) @ head[2].weight.T + head[2].bias
    assert torch.allclose(head(features), wanted, atol=1e-6)
    assert head(features).shape == (3, 4)
    assert head[0].out_features == 5


def test_by_default_the_hidden_layer_is_as_wide_as_the_features_and_64_come_out():
    widths = [(m.in_features, m.out_features) for m in projection_head(6) if type(m) is nn.Linear]
    assert widths == [(6, 6), (6, 64)]


@pytest.mark.parametrize("widths", [(0, 4, 3), (6, 0, 3), (6, 4, 0)])
def test_widths_below_one_are_refused(widths):
    inputs, outputs, hidden = widths
    with pytest.raises(ValueError, match=rf"inputs={inputs}, outputs={outputs}, hidden={hidden}: "):
        projection_head(inputs, outputs, hidden=hidden)


def test_a_normalised_head_is_linear_norm_relu_and_linear():
    head = normalised_head((6, 5, 4, 3))
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == [*["Linear", "BatchNorm", "ReLU"] * 2, "Linear"]
    features = torch.randn(7, 6)
    values = features
    for layer, norm in ((head[0], head[1]), (head[3], head[4])):
        hidden = values @ layer.weight.T
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
        values = hidden.clamp(min=0)
    wanted = values @ head[6].weight.T + head[6].bias
    torch.testing.assert_close(head(features), wanted, rtol=1e-5, atol=1e-5)


def test_what_comes_out_is_normalised_where_that_is_asked_for():
    head = normalised_head((6, 3), last_norm=True)
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm"]
    assert list(head.state_dict()) == [
        "0.weight",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    assert head(torch.randn(9, 6)).mean(0).abs().max() < 1e-6


@pytest.mark.parametrize("widths", [(6,), (6, 0, 3)])
def test_a_normalised_head_without_width_is_refused(widths):
    with pytest.raises(ValueError, match=r"widths: \[6.*\], must be at least two, each at least"):
        normalised_head(widths)
