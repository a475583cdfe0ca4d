import torch

from raykb.models import PREDICTORS


def test_the_predictor_sees_four_levels_beside_the_last_features():
    with torch.device("meta"):
        network = PREDICTORS["multi_level_efficientnet"](12, 1).eval()
        features = network.features(torch.zeros(2, 1, 64, 64))
        assert features.shape == (2, network.width) == (2, 24 + 40 + 80 + 192 + 1280)
        assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 12)
    levels = [level[0].weight.shape[0] for level in network.levels.values()]
    assert levels == [24, 40, 80, 192]
