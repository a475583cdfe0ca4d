import pytest
import torch
from shared_patches import masked, task, transformer
from torch import nn

from raykb.parts.patches import patched
from raykb.selfsup.simmim import SimMIM, simmim_loss


def method(**options):
    torch.manual_seed(3)
    return SimMIM(task(), **options)


def test_the_loss_is_the_formula_pixel_by_pixel():
    numbers = torch.Generator().manual_seed(0)
    predicted, wanted = torch.randn(2, 2, 4, 3, generator=numbers, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]).bool()
    differences = [
        abs(predicted[image, patch, k] - wanted[image, patch, k]).item()
        for image, patch in mask.nonzero().tolist()
        for k in range(3)
    ]
    found = simmim_loss(predicted, wanted, mask).item()
    assert found == pytest.approx(sum(differences) / len(differences))


def test_the_golden_value():
    mask = torch.tensor([[True, False]])
    found = simmim_loss(torch.tensor([[[1.0, -2.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2), mask)
    assert found.item() == 1.5


def test_the_mask_token_stands_for_what_is_hidden_and_places_stay_known():
    network, objective, batch = transformer(), method(), masked(0.6)
    said, given = [], []
    objective.head.register_forward_hook(lambda module, args, output: said.append(output))
    network.encoder.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    loss = objective(network, batch, 0)["loss"]
    wanted = network.embed(batch.images).detach().clone()
    for image, place in batch.mask.nonzero().tolist():
        wanted[image, place] = objective.mask_token.detach()
    torch.testing.assert_close(given[0][:, 1:], wanted + network.positions(batch.images))
    assert torch.equal(loss, simmim_loss(said[0], patched(batch.images, 2), batch.mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mask_ratio": -0.1}, r"mask_ratio: -0.1, must be in \[0, 1\)"), ({"unit": 0}, "unit: 0")],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_a_network_without_patches_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no .*patch.*, which simmim needs"):
        SimMIM(task(nn.Linear(1, 1)))
