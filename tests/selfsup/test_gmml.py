import math

import pytest
import torch
from shared_patches import corrupted, task, transformer
from torch import nn

from raykb.selfsup.gmml import GMML, every_second, gmml_loss, with_aliens


def method(network=None, **options):
    torch.manual_seed(3)
    return GMML(task(network), **options)


def test_the_loss_is_the_formula_pixel_by_pixel():
    numbers = torch.Generator().manual_seed(0)
    found, wanted = torch.randn(2, 2, 3, 4, 4, generator=numbers, dtype=torch.float64)
    mask = torch.rand(2, 1, 4, 4, generator=numbers) < 0.4
    differences = [
        abs(found[i, c, y, x] - wanted[i, c, y, x]).item()
        for i, _, y, x in mask.nonzero().tolist()
        for c in range(3)
    ]
    loss = gmml_loss(found, wanted, mask).item()
    assert loss == pytest.approx(sum(differences) / len(differences))


def test_a_perfect_prediction_of_what_is_corrupted_is_exactly_0_whatever_the_rest_says():
    batch = corrupted()
    wrong = torch.where(batch.mask, batch.images, 99.0).requires_grad_()
    loss = gmml_loss(wrong, batch.images, batch.mask)
    loss.backward()
    assert loss == 0
    off = (batch.images + 1.0).requires_grad_()
    gmml_loss(off, batch.images, batch.mask).backward()
    everywhere = batch.mask.expand_as(off)
    assert (off.grad[~everywhere] == 0).all()
    assert (off.grad[everywhere] != 0).all()


def test_nothing_said_of_normal_pixels_costs_their_mean_absolute_value():
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(64, 1, 32, 32, dtype=torch.bool)
    loss = gmml_loss(torch.zeros_like(images), images, mask).item()
    assert loss == pytest.approx(math.sqrt(2 / math.pi), abs=0.005)  # 0.798


def test_aliens_are_the_next_images_pixels_at_the_same_places():
    batch = corrupted(count=3)  # the first and the last one are to have them
    seen = with_aliens(batch.corrupted, batch.images, batch.mask, batch.alien)
    assert torch.equal(seen[1], batch.corrupted[1])
    for own, donor in ((0, 1), (2, 0)):
        where = batch.mask[own].expand(3, -1, -1)
        assert torch.equal(seen[own][where], batch.images[donor][where])
        assert torch.equal(seen[own][~where], batch.images[own][~where])


def test_the_loss_is_of_the_tokens_of_its_blocks():
    network, batch = transformer(depth=3), corrupted()
    objective = method(network, blocks=[1, 3])
    given = []
    network.encoder.register_forward_pre_hook(lambda module, args: given.append(args))
    terms = objective(network, batch, 0)
    assert given[0][1] == (1, 3)
    seen = with_aliens(batch.corrupted, batch.images, batch.mask, batch.alien)
    embedded = network.embed(seen) + network.positions(seen)
    torch.testing.assert_close(given[0][0][:, 1:], embedded)
    said = objective.head(network.encode(embedded, blocks=(1, 3)))  # (N, 16, 12)
    picture = torch.zeros_like(batch.images)
    for place in range(16):
        y, x = 2 * (place // 4), 2 * (place % 4)
        picture[:, :, y : y + 2, x : x + 2] = said[:, place].view(4, 3, 2, 2)
    torch.testing.assert_close(terms["loss"], gmml_loss(picture, batch.images, batch.mask))
    assert terms["corrupted"].item() == pytest.approx(batch.mask.float().mean().item())


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (6, 8, 10, 12)), (6, (4, 6)), (4, (2, 4)), (3, (1, 3)), (2, (2,)), (1, (1,))],
)
def test_every_second_block_from_the_last_down_to_the_middle(depth, blocks):
    assert every_second(depth) == blocks


def test_cells_are_patches_unless_it_is_said_otherwise():
    assert method().align == 2
    assert method(align=1).align == 1
    assert method().blocks == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 0.0}, "drop: 0.0, must be in 0.01..0.95"),
        ({"replace": 1.0}, "replace: 1.0, must be in 0.01..0.95"),
        ({"aliens": 1.5}, "aliens: 1.5, must be in 0..1"),
        ({"longest": 0.0}, "longest: 0.0, must be in 0.01..1"),
        ({"align": 0}, "align: 0, must be at least 1, or null"),
        ({"fill": "grey"}, "fill: 'grey', must be 'noise' or 'zeros'"),
        ({"blocks": [0, 2]}, r"blocks: \[0, 2\]; must be of 1..2, and the last of them"),
        ({"blocks": [1]}, r"blocks: \[1\]; must be of 1..2, and the last of them"),
        ({"blocks": []}, r"blocks: \[\]; must be of 1..2, and the last of them"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_a_network_without_patches_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no .*patch.*, which gmml needs"):
        method(nn.Linear(1, 1))


@pytest.mark.slow
def test_eight_images_are_learned_by_heart():
    torch.manual_seed(0)
    network = transformer(image_size=32, patch=4, width=48, heads=3)
    objective, numbers = method(network), torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(
        torch.randn(8, 3, 4, 4, generator=numbers), 32, mode="bilinear"
    )
    mask = torch.zeros(8, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 8:20, 4:16] = mask[:, :, 16:28, 16:28] = True
    noise = torch.where(mask, torch.randn(images.shape, generator=numbers), images)
    batch = corrupted()._replace(
        images=images, corrupted=noise, mask=mask, alien=torch.zeros(8).bool()
    )
    both = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW([p for p in both if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(300):
        loss = objective(network, batch, step)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.4 * losses[0]
