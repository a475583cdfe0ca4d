import torch

from raykb.nas import GOLDEN, SearchSpace, network, random_genotype
from raykb.nas.found import found_network


def test_without_a_file_the_network_has_the_published_cells():
    found = found_network(4, 1, width=8, layers=6)
    assert sum(weight.numel() for weight in found.parameters()) == 1_797_444


def test_a_file_gives_the_network_that_was_found(tmp_path):
    drawn = random_genotype(SearchSpace(), GOLDEN.sizes, torch.Generator().manual_seed(3))
    (tmp_path / "genotype.json").write_text(drawn.to_json())
    found = found_network(2, 1, genotype=tmp_path / "genotype.json", width=4, layers=2)
    wanted = network(drawn, 4, 2, 2, 1).state_dict()
    assert {name: w.shape for name, w in found.state_dict().items()} == {
        name: w.shape for name, w in wanted.items()
    }
    assert found_network(2, 1, width=4, layers=2).state_dict().keys() != wanted.keys()
    assert found(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)
