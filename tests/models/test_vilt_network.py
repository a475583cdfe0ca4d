import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raykb.engine.seeding import generator
from raykb.models.vilt import ViLT, resized_positions, vilt_b_32

TEXT = torch.tensor([[2, 7, 8, 3]])


def network():
    torch.manual_seed(0)
    return ViLT(
        3, 3, vocabulary=20, text_length=8, image_size=32, patch=8, width=32, depth=2, heads=4
    ).eval()


def image(*shape):
    return torch.randn(1, 3, *shape, generator=generator(1))


def test_paper_size_has_as_many_parameters_as_published():
    with torch.device("meta"):
        vilt = vilt_b_32(1000)
    count = sum(p.numel() for p in [*vilt.visual.encoder.layers.parameters()])
    count += sum(p.numel() for p in vilt.visual.conv_proj.parameters())
    assert count == pytest.approx(87.4e6, rel=1e-3)
    assert sum(p.numel() for p in vilt.textual.parameters()) == (30522 + 40 + 1 + 2) * 768


def test_padding_of_text_and_image_in_a_batch_changes_nothing():
    vilt = network()
    alone = vilt.joint(image(16, 24), TEXT).pooled
    larger = torch.zeros(2, 3, 32, 32)
    larger[0, :, :16, :24] = image(16, 24)
    larger[1] = 9.0  # another image of the batch
    sizes = torch.tensor([[16, 24], [32, 32]])
    longer = torch.zeros(2, 8, dtype=torch.int64)
    longer[0, :4], longer[1] = TEXT, 5
    assert torch.allclose(vilt.joint(larger, longer, sizes).pooled[:1], alone, atol=1e-5)
    features = vilt.features(image(16, 24))
    assert torch.allclose(vilt.features(larger, sizes)[:1], features, atol=1e-5)


def test_what_stands_in_padding_is_heeded_by_nobody():
    vilt, sizes = network(), torch.tensor([[32, 16]])
    first = image(32, 32)
    second = first.clone()
    second[..., 16:] = 7.0
    assert torch.equal(
        vilt.joint(first, TEXT, sizes).pooled, vilt.joint(second, TEXT, sizes).pooled
    )


def test_patches_in_another_order_with_their_positions_say_the_same():
    vilt = network()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(16)])
    embedded, _ = vilt._embedded(image(32, 32), None, None)
    text = vilt.textual(TEXT) + vilt.types[0]
    first, second = (
        vilt._pooled(vilt.visual.encoder(torch.cat([text, each], 1)))
        for each in (embedded, embedded[:, order])
    )
    assert torch.allclose(first, second, atol=1e-5)


def test_positions_of_another_grid_are_interpolated_with_corners_kept():
    table = torch.randn(16, 5, generator=generator(2))
    grids = torch.tensor([[2, 7], [4, 4], [1, 3]])
    every = resized_positions(table, grids, (4, 8)).view(3, 4, 8, 5)
    found, whole = every[0], table.view(4, 4, 5)
    plain = F.interpolate(whole.permute(2, 0, 1)[None], (2, 7), mode="bilinear", align_corners=True)
    assert torch.allclose(found[:2, :7], plain[0].permute(1, 2, 0), atol=1e-6)
    assert torch.equal(every[1, :, :4], whole)
    assert torch.allclose(found[0, 0], whole[0, 0])
    assert torch.allclose(found[1, 6], whole[3, 3], atol=1e-6)
    assert (found[2:] == 0).all()
    assert (found[:, 7] == 0).all()


def test_patches_that_are_not_seen_say_nothing_and_those_that_are_say_where_they_were():
    vilt, places = network(), torch.tensor([[3, 9, 1]])
    first = image(32, 32)
    second = first.clone()
    second[:, :, 16:24, 16:24] = 7.0  # the patch 10
    seen = [vilt.joint(each, TEXT, None, places).pooled for each in (first, second)]
    assert torch.equal(*seen)
    second[:, :, :8, 8:16] = 7.0  # the patch 1
    assert not torch.allclose(vilt.joint(second, TEXT, None, places).pooled, seen[0])
    both = vilt.joint(first, TEXT, torch.tensor([[8, 32]]), places)
    assert both.present.tolist() == [[True, False, True]]
    assert both.image.shape == (1, 3, 32)


def test_types_tell_text_from_image():
    vilt = network()
    before = vilt.joint(image(32, 32), TEXT).pooled
    nn.init.constant_(vilt.types[1].data, 3.0)
    assert not torch.allclose(vilt.joint(image(32, 32), TEXT).pooled, before)


def test_a_text_that_is_too_long_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"9 of a text, must be at most 8; set model.text_length"):
        network().text_features(torch.ones(1, 9, dtype=torch.int64))
