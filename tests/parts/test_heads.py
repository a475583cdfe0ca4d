import pytest
import torch
from torch import nn

from raykb.parts.heads import projection_head


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
