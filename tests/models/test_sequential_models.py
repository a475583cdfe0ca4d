"""The published sizes, the published functions, and that a pipeline may cut them anywhere."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("torchvision")

from raykb.models import MODELS, SEQUENTIALS
from raykb.models.amoebanet import Cell, Unit, amoebanet_d
from raykb.models.resnet import (
    Convolution,
    resnet50,
    resnet50_sequential,
    resnet101_sequential,
    small_resnet_sequential,
)
from raykb.models.small_convnet import small_convnet
from raykb.models.unet import unet
from raykb.parts.skip import Skippable, carry, skip_routes, verify_skippables

OPTIONS: dict[str, dict[str, Any]] = {"amoebanet_d": {"layers": 3, "filters": 16}}


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def seeded(build: Any, *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return build(*args, **options).double()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def leaves(values: Any) -> Any:
    """Cut tensors off their graph, as a boundary between two stages does."""
    if isinstance(values, tuple):
        return tuple(leaves(value) for value in values)
    return values.detach().requires_grad_()


def flat(values: Any) -> tuple[Tensor, ...]:
    return values if isinstance(values, tuple) else (values,)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# ------------------------------------------------------------------------------ published sizes


@pytest.mark.parametrize(
    ("layers", "filters", "millions"),
    [(18, 208, 81.5), (18, 416, 319.0), (18, 544, 542.7), (36, 544, 1060), (72, 512, 1840)],
)
def test_amoebanet_d_has_the_published_size(layers: int, filters: int, millions: float):
    with torch.device("meta"):
        model = amoebanet_d(layers, filters)
    assert len(model) == layers + 6
    digits = 1 if millions < 1000 else -1  # 1.06 B
    assert round(parameters_of(model) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("blocks", "channels", "millions"),
    [(6, 72, 362.2), (11, 128, 2210), (24, 128, 4990), (24, 160, 7800), (48, 160, 15820)],
)
def test_the_unet_has_the_published_size(blocks: int, channels: int, millions: float):
    with torch.device("meta"):
        model = unet(blocks, channels)
    assert len(model) == 44 * blocks + 21
    assert round(parameters_of(model) / 1e6, 1 if millions < 1000 else -1) == millions


def test_the_residual_networks_have_their_numbers_of_layers():
    with torch.device("meta"):
        assert len(resnet101_sequential()) == 370
        assert len(resnet50_sequential()) == 183
    assert len(small_resnet_sequential(10)) == 31
    assert parameters_of(small_resnet_sequential(10, 1)) == 77754


# -------------------------------------------------------------------------- published functions


@pytest.mark.parametrize(
    ("flat_one", "reference", "size", "options"),
    [
        pytest.param(resnet101_sequential, "resnet101", 64, {}, marks=pytest.mark.slow),
        (resnet50_sequential, "resnet50", 64, {}),
        (resnet50_sequential, "raykb", 16, {"channels": 1, "stem": "small"}),
    ],
)
def test_a_flat_resnet_computes_what_torchvisions_does(
    flat_one: Any, reference: str, size: int, options: dict[str, Any]
):
    if reference == "raykb":
        expected = resnet50(7, **options).double()
    else:
        torchvision = pytest.importorskip("torchvision.models")
        expected = getattr(torchvision, reference)(num_classes=7).double()
    model = seeded(flat_one, 7, **options)
    theirs = expected.state_dict()
    assert [value.shape for value in model.state_dict().values()] == [
        value.shape for value in theirs.values()
    ]
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    x = images(2, options.get("channels", 3), size, size)
    logits, wanted = model(x), expected(x)
    torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-9)
    for values in (logits, wanted):
        F.cross_entropy(values, torch.tensor([0, 6])).backward()
    for ours, their in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, their.grad, rtol=1e-7, atol=1e-9)
    model.eval(), expected.eval()  # with the statistics that the step above has left
    torch.testing.assert_close(model(x), expected(x), rtol=1e-9, atol=1e-9)


def naive_unet(model: nn.Sequential, x: Tensor, blocks: int, depth: int) -> Tensor:
    convolutions = iter([layer for layer in model if isinstance(layer, nn.Conv2d)])

    def cell(x: Tensor) -> Tensor:
        for _ in range(blocks):
            x = F.conv2d(x, next(convolutions).weight, padding=1)
            x = F.leaky_relu(F.instance_norm(x), 0.01)
        return x

    def level(x: Tensor, remaining: int) -> Tensor:
        x = cell(x)
        if not remaining:
            return x
        height, width = x.shape[2:]
        below = F.interpolate(level(F.max_pool2d(x, 2), remaining - 1), scale_factor=2)
        below = F.pad(below, (0, width - below.shape[3], 0, height - below.shape[2]))
        return cell(torch.cat([below, x], dim=1))

    return F.conv2d(level(x, depth), next(convolutions).weight)


@pytest.mark.parametrize(
    ("blocks", "depth", "size"),
    [(1, 1, (8, 8)), (2, 3, (16, 24)), (3, 2, (13, 11)), (1, 5, (65, 33))],
)
def test_the_unet_computes_what_nested_functions_do(blocks: int, depth: int, size: tuple[int, int]):
    model = seeded(unet, blocks, 4, depth, input_channels=2, output_channels=3, dropout=0.0)
    x = images(2, 2, *size).requires_grad_()
    y = model(x)
    assert y.shape == (2, 3, *size)
    expected = naive_unet(model, x, blocks, depth)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("reduction", [False, True])
def test_a_cell_sums_and_concatenates_as_the_table_says(reduction: bool):
    cell = seeded(Cell, 6, 8, 8, reduction=reduction, after_reduction=False).eval()
    previous, before = images(2, 6, 9, 9), images(2, 8, 9, 9)
    do = list(cell.operations)
    s0, s1 = cell.from_previous(previous), before
    if reduction:
        s2 = F.max_pool2d(s0, 2, 2, ceil_mode=True) + F.max_pool2d(s0, 3, 2, 1)
        s3 = s2 + do[3](s1)
        s4 = do[4](s2) + F.max_pool2d(s2, 3, 1, 1)
        s5 = s3 + F.max_pool2d(s1, 2, 2, ceil_mode=True)
        s6 = F.avg_pool2d(s2, 3, 1, 1, count_include_pad=False) + do[9](s3)
        expected = torch.cat([s4, s5, s6], dim=1)
    else:
        s2 = do[0](s1) + F.max_pool2d(s1, 3, 1, 1)
        s3 = s1 + do[3](s0)
        s4 = do[4](s0) + do[5](s0)
        s6 = F.avg_pool2d(s1, 3, 1, 1, count_include_pad=False) + do[9](
            F.max_pool2d(s2, 3, 1, 1) + s2
        )
        expected = torch.cat([s0, s3, s4, s6], dim=1)
    output, passed = cell((previous, before))
    assert passed is previous
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert output.shape == (2, cell.outputs, *((5, 5) if reduction else (9, 9)))
    kernels = {
        index: [unit[1].kernel_size for unit in do[index].modules() if isinstance(unit, Unit)]
        for index in ((3, 4, 9) if reduction else (0, 3, 4, 5, 9))
    }
    one, wide = [(1, 1)], [(1, 1), (1, 7), (7, 1), (1, 1)]
    assert kernels == (
        {3: [(1, 1), (3, 3), (1, 1)], 4: wide, 9: one}
        if reduction
        else {0: one, 3: wide, 4: one, 5: wide, 9: one}
    )


def test_a_factorized_reduce_follows_a_reduction_and_keeps_every_pixels_share():
    cell = seeded(Cell, 4, 4, 8, reduction=False, after_reduction=True)
    x = images(1, 4, 7, 7).requires_grad_()
    reduced = cell.from_before(x)
    assert reduced.shape == (1, 8, 4, 4)
    weights = images(*reduced.shape)
    (gradient,) = torch.autograd.grad((reduced * weights).sum(), x)
    seen = (gradient != 0).any(dim=1)[0]
    assert seen[::2, ::2].any()
    assert seen[1::2, 1::2].any()
    assert not seen[::2, 1::2].any()


def test_a_residual_networks_convolutions_start_from_hes_normal_over_the_fan_out():
    weight = seeded(Convolution, 16, 256, 3).weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    kurtosis = (weight / weight.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, rel=0.05)  # a uniform distribution: 1.8


# ------------------------------------------------------------------------------- what they accept


@pytest.mark.parametrize("size", [(5, 5), (28, 28), (33, 47), (64, 64)])
def test_amoebanet_d_takes_images_of_any_size(size: tuple[int, int]):
    model = seeded(amoebanet_d, 3, 16, 5, channels=1)
    logits = model(images(2, 1, *size))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(value is not None and value.isfinite().all() for value in gradients(model).values())


@pytest.mark.parametrize(
    ("build", "problems"),
    [
        (lambda: amoebanet_d(4, 208), ["layers=4: must be a positive multiple of 3"]),
        (lambda: amoebanet_d(0, 208), ["layers=0: must be a positive multiple of 3"]),
        (lambda: amoebanet_d(3, 7), ["filters=7: must be at least 8"]),
        (
            lambda: unet(0, 3, 0),
            [
                "blocks=0: must be at least 1",
                "channels=3: must be even and at least 2",
                "depth=0: must be at least 1",
            ],
        ),
        (lambda: resnet101_sequential(stem="tiny"), ["stem='tiny': must be one of"]),
    ],
)
def test_what_cannot_be_built_is_refused_with_every_reason(build: Any, problems: list[str]):
    with pytest.raises(ValueError, match="must be") as raised:
        build()
    assert all(problem in str(raised.value) for problem in problems)


@pytest.mark.parametrize("name", sorted(SEQUENTIALS))
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_a_pipelines_model_is_built_from_classes_and_channels(name: str, channels: int, size: int):
    with torch.device("meta"):
        model = SEQUENTIALS[name](classes=7, channels=channels, **OPTIONS.get(name, {}))
        assert isinstance(model, nn.Sequential)
        verify_skippables(model)
        assert model(torch.empty(2, channels, size, size)).shape == (2, 7)
    assert inspect.signature(SEQUENTIALS[name]).parameters["channels"].default == 3
    assert MODELS.get(name) in (None, SEQUENTIALS[name])


def test_width_and_dropout_of_the_small_one_are_those_asked_for():
    model = small_resnet_sequential(10, 1, width=8, dropout=0.5)
    assert model.stem_conv.out_channels == 8
    assert model.linear.in_features == 32
    assert model.dropout.p == 0.5
    assert unet(1, 4, dropout=0.3).down0_unit0_dropout.p == 0.3


# ---------------------------------------------------------------------------- under a pipeline


def every(model: nn.Sequential) -> range:
    return range(1, len(model))


CUT = [
    (lambda: small_resnet_sequential(10, 1, width=4), (1, 28, 28), every),
    (lambda: small_convnet(10, 1, width=4), (1, 28, 28), every),
    (lambda: unet(1, 4, 2), (3, 13, 9), every),
    (lambda: amoebanet_d(3, 16, 5), (3, 33, 33), every),
    (lambda: resnet50_sequential(5), (3, 32, 32), lambda model: (40,)),
]


@pytest.mark.parametrize(("build", "shape", "cuts"), CUT)
def test_two_halves_compute_what_the_whole_does_wherever_it_is_cut(
    build: Any, shape: tuple[int, ...], cuts: Any
):
    whole = seeded(build)
    start = copy.deepcopy(whole)
    x = images(2, *shape)
    torch.manual_seed(2)
    expected = whole(leaves(x))
    expected.square().sum().backward()
    for cut in cuts(whole):
        model = copy.deepcopy(start)
        first, second = model[:cut], model[cut:]
        torch.manual_seed(2)
        left: dict[Any, Any] = {}
        with carry(left):
            sent = first(leaves(x))
        received = leaves(sent)
        skips = {key: leaves(value) for key, value in left.items()}
        assert list(skips) == list(skip_routes([list(first), list(second)])), cut
        remaining = dict(skips)
        with carry(remaining):
            output = second(received)
        assert remaining == {}, cut
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        output.square().sum().backward()
        ends = [*flat(sent), *left.values()], [*flat(received), *skips.values()]
        pairs = [(end, leaf.grad) for end, leaf in zip(*ends, strict=True) if leaf.grad is not None]
        torch.autograd.backward(*zip(*pairs, strict=True))
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(
                gradient, gradients(whole)[name], rtol=1e-9, atol=1e-9, msg=f"{name}, cut at {cut}"
            )
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, whole.get_buffer(name), rtol=0, atol=0)


@pytest.mark.parametrize(("build", "shape", "cuts"), CUT)
def test_no_layer_changes_its_input(build: Any, shape: tuple[int, ...], cuts: Any):
    value: Any = images(2, *shape)
    for name, layer in seeded(build).named_children():
        before = [part.clone() for part in flat(value)]
        output = layer(value)
        for part, kept in zip(flat(value), before, strict=True):
            assert part.equal(kept), name
        value = output


def skip_keys(model: nn.Sequential) -> list[Any]:
    return [key for layer in model if isinstance(layer, Skippable) for key in layer.stashable()]


@pytest.mark.parametrize(("build", "shape", "cuts"), CUT)
def test_models_of_two_processes_name_layers_and_skips_alike(build: Any, shape: Any, cuts: Any):
    model = seeded(build)
    assert skip_keys(model) == skip_keys(build())
    twin = pickle.loads(pickle.dumps(model))
    assert skip_keys(model) == skip_keys(twin)
    assert list(twin.state_dict()) == list(build().state_dict())
    model.eval(), twin.eval()
    torch.testing.assert_close(twin(images(2, *shape)), model(images(2, *shape)), rtol=0, atol=0)


@pytest.mark.parametrize(("build", "shape", "cuts"), CUT)
def test_layers_filled_from_the_meta_device_are_those_built_at_once(
    build: Any, shape: Any, cuts: Any
):
    torch.manual_seed(0)
    expected = build().state_dict()
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in model.modules():
        if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
            module.reset_parameters()
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name


def test_the_unets_skips_pass_over_the_stages_between():
    model = list(unet(1, 4, 3))
    routes = skip_routes([model[:12], model[12:22], model[22:]])
    assert [(ns.id, route) for (ns, _), route in routes.items()] == [
        ("level0", (0, 2)),
        ("level1", (0, 2)),
        ("level2", (1, 2)),
    ]
