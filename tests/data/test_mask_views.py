"""What is hidden or replaced of images, and that it belongs to image, epoch and seed alone."""

import numpy as np
import pytest
import torch

from raykb.data.crops import RandomCrops
from raykb.data.mask_views import CorruptedView, MaskedView
from raykb.data.views import CropFlipView

FORM = CropFlipView(mean=[0.5], std=[0.25])
CROPS = RandomCrops(scale=(0.5, 1.0))


def arrays(count, side=28):
    numbers = torch.Generator().manual_seed(0)
    return {"images": torch.randint(256, (count, 1, side, side), generator=numbers).byte()}


def made(view, count=8, epoch=0, side=28):
    return view.finish(view.train(arrays(count, side), np.arange(count) + 10, 3, epoch))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 37), (0.5, 25), (0.01, 1)])
def test_so_many_patches_are_hidden_of_each_image_and_never_the_same(ratio, hidden):
    mask = made(MaskedView(CROPS, FORM, 4, ratio), 64)["mask"]
    assert mask.shape == (64, 49)
    assert (mask.sum(1) == hidden).all()
    assert len(mask.unique(dim=0)) > (32 if hidden > 1 else 16)
    assert mask.any(0).sum() > 30  # no place is spared


def test_units_are_hidden_as_a_whole():
    mask = made(MaskedView(CROPS, FORM, 2, 0.6, unit=2))["mask"].view(8, 7, 2, 7, 2)
    assert (mask.sum((2, 4)) % 4 == 0).all()
    assert (mask.sum((1, 2, 3, 4)) == 4 * 30).all()  # of 49


def test_a_loop_finds_the_same_hidden_patches_in_any_company():
    view = MaskedView(CROPS, FORM, 4, 0.75)
    whole = made(view)
    for row in range(8):
        one = {"images": arrays(8)["images"][row : row + 1]}
        alone = view.finish(view.train(one, np.array([row + 10]), 3, 0))
        assert torch.equal(alone["mask"][0], whole["mask"][row])
    assert not torch.equal(made(view, epoch=1)["mask"], whole["mask"])


def test_the_mask_is_whole_cells_in_rectangles_and_covers_what_was_drawn():
    view = CorruptedView(CROPS, FORM, 4, drop=0.5, aliens=0.0)
    mask = made(view, 64)["mask"]
    cells = mask.view(64, 7, 4, 7, 4).float().mean((2, 4))
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert (cells.mean((1, 2)) >= 0.5).all()
    assert (cells.mean((1, 2)) < 0.6).all()  # a block has four cells at most


def test_noise_covers_the_sheets_mean_share_of_large_images():
    shares = []
    for epoch in range(10):
        view = CorruptedView(CROPS, FORM, 16, aliens=0.0, fill="zeros")
        draws = view._blocks(
            torch.empty(200, 1, 224, 224, device="meta"),
            np.arange(200),
            0.5 + 0.25 * torch.rand(200, dtype=torch.float64),
            0,
            epoch,
        )
        shares.append(draws[:, :, ::16, ::16].float().mean((1, 2, 3)))
    found = torch.cat(shares)
    assert found.mean().item() == pytest.approx(0.65, abs=0.02)
    assert found.min() >= 0.5


def test_outside_the_mask_nothing_changes_and_inside_there_is_normal_noise():
    fields = made(CorruptedView(CROPS, FORM, 4), 64)
    images, corrupted, mask = (fields[name] for name in ("images", "corrupted", "mask"))
    assert mask.shape == (64, 1, 28, 28)
    assert torch.equal(corrupted[~mask], images[~mask])
    assert corrupted[mask].mean().item() == pytest.approx(0.0, abs=0.02)
    assert corrupted[mask].std().item() == pytest.approx(1.0, abs=0.02)
    assert corrupted[mask].unique().numel() > 0.99 * mask.sum()


def test_zeros_fill_in_where_they_are_asked_for():
    fields = made(CorruptedView(CROPS, FORM, 4, fill="zeros"))
    assert (fields["corrupted"][fields["mask"]] == 0).all()


def test_half_of_the_images_get_another_one_in_blocks_that_cover_less():
    fields = made(CorruptedView(CROPS, FORM, 4), 2000)
    alien, share = fields["alien"], fields["mask"].float().mean((1, 2, 3))
    assert alien.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert share[alien].mean().item() == pytest.approx(0.33, abs=0.02)
    assert share[~alien].mean().item() == pytest.approx(0.65, abs=0.02)
    assert not made(CorruptedView(CROPS, FORM, 4, aliens=0.0))["alien"].any()


def test_blocks_as_short_as_a_cell_are_scattered_cells():
    connected, scattered = (
        made(CorruptedView(CROPS, FORM, 2, longest=longest, drop=0.3, aliens=0.0), 64)["mask"]
        for longest in (0.5, 2 / 28)
    )

    def neighbours(mask):
        """Return the share of covered cells whose right neighbour is covered, too."""
        cells = mask[:, 0, ::2, ::2]
        return (cells[:, :, 1:] & cells[:, :, :-1]).float().mean() / cells.float().mean()

    assert neighbours(connected) > 0.6
    assert neighbours(scattered) < 0.4


def test_corruption_belongs_to_the_image_in_any_company():
    view = CorruptedView(CROPS, FORM, 4)
    whole, again = made(view), made(view, epoch=1)
    for row in (0, 5):
        one = {"images": arrays(8)["images"][row : row + 1]}
        alone = view.finish(view.train(one, np.array([row + 10]), 3, 0))
        for name, value in alone.items():
            assert torch.equal(value[0], whole[name][row]), name
    assert not torch.equal(whole["mask"], again["mask"])


def test_cells_longer_than_a_block_may_be_are_refused():
    with pytest.raises(ValueError, match=r"^align: 14 pixels, blocks of images of 28 x 28"):
        made(CorruptedView(CROPS, FORM, 14))


@pytest.mark.parametrize("view", [MaskedView(CROPS, FORM, 5, 0.5), CorruptedView(CROPS, FORM, 5)])
def test_images_that_cells_do_not_fill_are_refused(view):
    with pytest.raises(ValueError, match=r"^images: 28 x 28 pixels; squares of 5 must fill them"):
        made(view)


@pytest.mark.parametrize("view", [MaskedView(CROPS, FORM, 4, 0.5), CorruptedView(CROPS, FORM, 4)])
def test_the_plain_view_is_the_forms(view):
    fields = view.plain(arrays(2))
    assert torch.equal(fields["images"], FORM.plain(arrays(2)["images"]))


def test_the_image_is_a_crop_that_is_normalised_at_the_end():
    view, ids = MaskedView(CROPS, FORM, 4, 0.5), np.arange(4)
    fields = view.train(arrays(4), ids, 3, 1)
    assert fields["images"].dtype == torch.uint8
    assert torch.equal(fields["images"], CROPS.views(arrays(4)["images"], ids, 3, 1, 1)[:, 0])
    wanted = (fields["images"].float() / 255 - 0.5) / 0.25
    assert torch.allclose(view.finish(fields)["images"], wanted, atol=1e-6)
