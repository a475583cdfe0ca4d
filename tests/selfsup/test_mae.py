import pytest
import torch
from shared_patches import masked, task, transformer
from torch import nn

from raykb.parts.patches import patched
from raykb.parts.transformer import sine_cosine_positions
from raykb.selfsup.mae import MAE, mae_loss, normalised


def method(**options):
    torch.manual_seed(3)
    return MAE(task(), **{"decoder_width": 12, "decoder_depth": 1} | options)


def test_the_loss_is_the_formula_patch_by_patch():
    numbers = torch.Generator().manual_seed(0)
    predicted, wanted = torch.randn(2, 3, 5, 4, generator=numbers, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]).bool()
    total = 0.0
    for image, patch in mask.nonzero().tolist():
        squares = [(predicted[image, patch, k] - wanted[image, patch, k]) ** 2 for k in range(4)]
        total += sum(squares).item() / 4
    assert mae_loss(predicted, wanted, mask).item() == pytest.approx(total / 6)


def test_the_golden_value():
    predicted = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    wanted = torch.tensor([[[9.0, 9.0], [0.0, 1.0]]])
    assert mae_loss(predicted, wanted, torch.tensor([[False, True]])).item() == 2.5


def test_patches_in_sight_have_no_part_in_it():
    wanted = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, False, True, False]]).expand(2, 4)
    predicted = torch.randn(2, 4, 3, requires_grad=True)
    mae_loss(predicted, wanted, mask).backward()
    assert (predicted.grad[~mask] == 0).all()
    assert (predicted.grad[mask] != 0).all()
    assert mae_loss(wanted + 5.0 * ~mask[:, :, None], wanted, mask) == 0


def test_a_normalised_patch_has_mean_0_and_variance_1_and_a_flat_one_is_0():
    patches = 3.0 + 5.0 * torch.randn(2, 3, 48)
    patches[0, 0] = 7.0
    found = normalised(patches)
    assert torch.allclose(found.mean(2), torch.zeros(2, 3), atol=1e-6)
    assert torch.allclose(found.var(2)[1], torch.ones(3), atol=1e-4)
    assert (found[0, 0] == 0).all()


def test_nothing_is_known_of_hidden_patches():
    network, objective, batch = transformer(), method(normalise=False), masked(0.75)
    hidden = batch.mask.view(4, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    said = []
    objective.decoder.register_forward_hook(lambda module, args, output: said.append(output))
    objective(network, batch, 0)
    objective(network, batch._replace(images=batch.images + 9.0 * hidden), 0)
    assert torch.equal(*said)
    objective(network, batch._replace(images=batch.images + 9.0 * ~hidden), 0)
    assert not torch.allclose(said[0], said[2], atol=1e-3)


def test_each_prediction_stands_at_the_place_of_its_patch():
    network, objective, batch = transformer(), method(mask_ratio=0.5), masked(0.5)
    objective.decoder = nn.Identity()
    said = []
    objective.decoder.register_forward_hook(lambda module, args, output: said.append(output))
    encoded = []
    network.encoder.register_forward_hook(lambda module, args, output: encoded.append(output))
    wanted = torch.zeros(4, 16, 12)
    objective(network, batch, 0)  # for a token has as many numbers as a patch has pixels
    for image in range(4):
        seen = iter(objective.embed(encoded[0][image, 1:]))
        for place in range(16):
            hides = batch.mask[image, place]
            wanted[image, place] = objective.mask_token if hides else next(seen)
    torch.testing.assert_close(said[0], wanted + sine_cosine_positions(4, 4, 12))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_what_is_said_and_of_normalised_pixels(normalise):
    network, objective, batch = transformer(), method(normalise=normalise), masked(0.75)
    said = []
    objective.decoder.register_forward_hook(lambda module, args, output: said.append(output))
    loss = objective(network, batch, 0)["loss"]
    wanted = patched(batch.images, 2)
    wanted = normalised(wanted) if normalise else wanted
    assert torch.equal(loss, mae_loss(said[0], wanted, batch.mask))


def test_it_learns_to_fill_in_what_repeats():
    torch.manual_seed(0)
    network, objective = transformer(), method(normalise=False, mask_ratio=0.5)
    batch = masked(0.5, count=8)
    ramp = (
        torch.linspace(-1, 1, 8).expand(8, 3, 8, 8) * torch.linspace(-1, 1, 8)[:, None, None, None]
    )
    batch = batch._replace(images=ramp)
    both = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW([p for p in both if p.requires_grad], lr=5e-3)
    losses = []
    for step in range(80):
        loss = objective(network, batch, step)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio: 1.0, must be in \[0, 1\)"),
        ({"decoder_depth": 0}, "decoder_depth: 0, must be at least 1"),
        ({"decoder_width": 6}, "decoder_width, decoder_heads: 6 and 3; the width must be"),
        ({"decoder_heads": 5}, "decoder_width, decoder_heads: 12 and 5; the width must be"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_a_network_without_patches_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no .*patch.*, which mae needs"):
        MAE(task(nn.Linear(1, 1)))
