import pytest
import torch

from raykb.nas.cell import Cell
from raykb.nas.genotype import CELLS, PLACES, Genotype, Place, SearchSpace
from raykb.nas.operations import OPERATIONS, multiply_adds
from raykb.nas.scnas import GOLDEN, network, plans


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("sizes", "without", "alone"),
    [
        ((4, 4, 2, 1), 85_634, 23_096),
        ((8, 4, 2, 1), 341_026, 92_272),
        ((8, 6, 4, 1), 1_428_580, 368_864),
        ((12, 6, 4, 4), 3_215_272, 829_776),
        ((24, 6, 4, 4), 12_847_468, 3_318_432),
    ],
)
def test_the_published_cells_have_the_published_parameters(sizes, without, alone):
    with torch.device("meta"):
        assert parameters(network(GOLDEN, *sizes, bridge=False)) == without
        assert parameters(network(GOLDEN, *sizes)) == without + alone


@pytest.mark.parametrize("bridge", [True, False])
@pytest.mark.parametrize(("dims", "sides"), [(3, (8, 16, 8)), (2, (8, 16))])
def test_logits_have_the_sides_of_the_images(dims, sides, bridge):
    found = network(GOLDEN, 2, 4, 3, 2, bridge=bridge, dims=dims)
    logits = found(torch.randn(2, 2, *sides))
    assert logits.shape == (2, 3, *sides)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_the_skips_fit_by_construction_at_any_depth():
    found = network(GOLDEN, 1, 8, 2, 1, dims=2)
    assert found(torch.randn(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_cells_alternate_and_their_channels_double_with_the_level():
    kinds = [plan.kind for plan in plans(8, 4, bridge=True)]
    assert kinds == [
        *["reduction", "encoder_normal"] * 2,
        "encoder_normal",
        *["decoder_normal", "expansion"] * 2,
    ]
    assert [plan.level for plan in plans(8, 4, bridge=False)] == [1, 1, 2, 2, 2, 1, 1, 0]
    assert all(plan.channels == 8 * 2**plan.level for plan in plans(8, 4, bridge=True))


@pytest.mark.parametrize("sides", [(6, 8), (4, 4), (8,), (8, 8, 8)])
def test_sides_that_do_not_fit_are_refused(sides):
    found = network(GOLDEN, 1, 4, 2, 1, dims=2)
    with pytest.raises(ValueError, match=r"images: sides \(.*must be 2 multiples of 4, one"):
        found(torch.zeros(1, 1, *sides))


def test_wrong_arguments_are_told_at_once():
    message = "width: 0, must be .*; layers: 3, must be even .*; dims: 4, must be 2 or 3"
    with pytest.raises(ValueError, match=message):
        network(GOLDEN, 0, 3, 1, 1, dims=4)


# ---------------------------------------------------------------------------- operations


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_all_operations_give_one_shape(name, stride, dims):
    x = torch.randn(2, 4, *[8] * dims)
    y = OPERATIONS[name](4, stride=stride, dims=dims)(x)
    assert y.shape == (2, 4, *[8 // stride] * dims)


def test_only_the_factorised_reduction_of_an_edge_has_a_norm_with_parameters():
    with torch.device("meta"):
        small = network(SearchSpace(), 2, 4, 2, 1)
    affine = {name for name, module in small.named_modules() if getattr(module, "affine", False)}
    inputs = [place.name for place in PLACES if place.source in ("s0", "s1")]
    assert affine == {
        f"cells.encoder{i}.edges.{edge}.identity.norm" for i in (0, 2) for edge in inputs
    }


@pytest.mark.parametrize(("channel", "voxel"), [(0, [2, 2]), (1, [3, 3])])
def test_the_factorised_reduction_sees_both_corners_of_each_square(channel, voxel):
    joined = []
    reduction = OPERATIONS["identity"](2, stride=2, dims=2)
    reduction.norm.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0]))
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    reduction(x)
    joined[0][:, channel, 1, 1].sum().backward()
    assert x.grad.abs().sum((0, 1)).nonzero().tolist() == [voxel]


@pytest.mark.parametrize("stride", [1, 2])
def test_thin_volumes_are_averaged_as_thick_ones(stride):
    pool = OPERATIONS["avg_pool_3"](1, stride=stride, dims=3)
    thin = torch.randn(1, 1, 2, 6, 4)
    thick = torch.cat([thin, torch.zeros(1, 1, 4, 6, 4)], dim=2)
    torch.testing.assert_close(pool(thin), pool(thick)[:, :, : 2 // stride])


def test_multiply_adds_are_those_of_the_weights():
    for name in ("conv_3", "conv_3_dilation_2", "conv_3_dilation_3"):
        convolution = OPERATIONS[name](6, stride=1, dims=3)
        assert multiply_adds(name, 6, stride=1, dims=3) == parameters(convolution)
    reduction = OPERATIONS["identity"](6, stride=2, dims=3)
    assert multiply_adds("identity", 6, stride=2, dims=3) == parameters(reduction) - 2 * 6
    assert multiply_adds("identity", 6, stride=1, dims=3) == 0
    assert multiply_adds("none", 6, stride=2, dims=3) == 0


# ---------------------------------------------------------------------------- dead nodes


def test_a_node_without_inputs_is_zeros_of_the_right_shape():
    lonely = (("n3", "s1", "conv_3"),)
    found = network(Genotype(**dict.fromkeys(CELLS, lonely)), 2, 2, 2, 1, dims=2)
    seen = []
    for cell in found.cells.values():
        cell.squeeze.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert found(torch.randn(1, 1, 8, 8)).shape == (1, 2, 8, 8)
    assert len(seen) == 5
    for joined in seen:
        n1, n2, n3 = joined.chunk(3, dim=1)
        assert not n1.any()
        assert not n2.any()
        assert n3.any()


def test_dropping_dead_edges_changes_no_output():
    plan = plans(2, 2, bridge=True)[2]
    raw = {
        Place("n1", "s0"): ("conv_3",),
        Place("n0", "s1"): ("none",),
        Place("n2", "n0"): ("conv_3",),
        Place("n3", "n1"): ("avg_pool_3",),
    }
    kept = {place: raw[place] for place in (Place("n1", "s0"), Place("n3", "n1"))}
    whole, lean = Cell(plan, raw, dims=2), Cell(plan, kept, dims=2)
    lean.load_state_dict(whole.state_dict(), strict=False)
    s0, s1 = torch.randn(2, 1, 12, 4, 4)
    assert torch.equal(whole(s0, s1, None), lean(s0, s1, None))
