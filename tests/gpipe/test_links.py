"""What may cross the boundaries of stages: every cut of odd models, against the whole."""

import pytest
import torch
from shared_pipelines import (
    LeaveSpectrum,
    Rig,
    TakeSpectrum,
    largest_error,
    merged,
    on_meta,
    reference,
    whole,
)
from torch import nn

from raykb.gpipe.grid import make_grid
from raykb.gpipe.links import wire_spec
from raykb.gpipe.probe import Spec
from raykb.parts.skip import pop, skippable, stash

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Emit(nn.Module):
    """Give a float, integers of all types with extreme values, and a mask."""

    def forward(self, x):
        index = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        others = [(index - 3).abs().to(d) + torch.iinfo(d).max - 9 for d in INTEGERS]
        return x, *others, index > 1


class Absorb(nn.Module):
    def forward(self, parts):
        x, *others, mask = parts
        for d, other in zip(INTEGERS, others, strict=True):
            if not x.is_meta and int(other.max()) != torch.iinfo(d).max - 6:
                raise ArithmeticError(f"{d} became {other}")
            x = x * (other - (torch.iinfo(d).max - 9)).to(x.dtype) * 0.7
        return torch.where(mask, x, -x)


class Pass(nn.Module):
    def forward(self, parts):
        return parts


class Single(nn.Module):
    """Give and take a tuple of one tensor."""

    def forward(self, x):
        x = x[0] if isinstance(x, tuple) else x
        return (x.sin(),)


class Bare(nn.Module):
    def forward(self, parts):
        return parts[0]


class Unused(nn.Module):
    """Give a tensor that nobody looks at, one that needs no gradient, and a turned one."""

    def forward(self, x):
        return x.exp(), x.detach() + 1, x.t()


class Used(nn.Module):
    def forward(self, parts):
        _, fixed, turned = parts
        return fixed * turned.t()


@skippable(stash=["mask", "nothing", "turned", "kept"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("mask", x > 0)
        yield stash("nothing", None)
        yield stash("turned", x.t())
        yield stash("kept", x)
        return x * 2


@skippable(pop=["mask", "nothing", "turned", "kept"])
class Take(nn.Module):
    def forward(self, x):
        nothing = yield pop("nothing")
        mask = yield pop("mask")
        turned = yield pop("turned")
        kept = yield pop("kept")
        if nothing is not None or mask.dtype != torch.bool:
            raise ArithmeticError("skips are not what they were")
        return torch.where(mask, x, turned.t().cos()) + kept


class Overwrite(nn.Module):
    def forward(self, x):
        return x.mul_(1.5)


NETWORKS = {
    "integers": (nn.Linear(4, 6), Emit(), Pass(), Pass(), Absorb(), nn.Linear(6, 6)),
    "a tuple of one": (nn.Linear(4, 6), Single(), Single(), Pass(), Bare(), nn.Linear(6, 6)),
    "what has no gradient": (nn.Linear(4, 6), Unused(), Pass(), Used(), nn.Tanh(), nn.ELU()),
    "skips": (nn.Linear(4, 6), Leave(), nn.Tanh(), nn.Identity(), nn.Linear(6, 6), Take()),
    "in place": (nn.Linear(4, 6), Overwrite(), nn.ReLU(inplace=True), nn.Linear(6, 6), Overwrite()),
    "nothing to train": (nn.Tanh(), nn.ELU(), Leave(), nn.Linear(4, 6), nn.Linear(6, 4), Take()),
}

MODES = [
    ("gpipe", "except_last", "portal"),
    ("1f1b", "always", "tuple"),
    ("gpipe_fifo", "never", "portal"),
    ("1f1b", "never", "tuple"),
]


def layers_of(name):
    return on_meta(lambda: nn.Sequential(*NETWORKS[name]).to("meta"))


def cuts(layers, stages):
    """Return balances that cut the model in many places."""
    if stages == 2:
        return [[i, layers - i] for i in range(1, layers)]
    return [[1, layers - 2, 1], [2, 1, layers - 3], [layers - 3, 1, 2], [2, layers - 4, 2]]


def data():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(7.0)


def every_cut(name, stages):
    grid = make_grid(stages)
    found = []
    for number, balance in enumerate(cuts(len(NETWORKS[name]), stages)):
        schedule, checkpoint, skip = MODES[number % len(MODES)]
        if stages == 3:
            schedule, checkpoint, skip = MODES[(number + 1) % len(MODES)]
        own = Rig(
            layers_of(name),
            grid,
            balance=balance,
            schedule=schedule,
            checkpoint=checkpoint,
            skip=skip,
        )
        loss = own.step(*data())
        gradients = own.gradients()
        found.append((balance, loss, gradients, own.predict(*data())))
    return found


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_cut_gives_the_model_in_one_piece(gloo, name, stages):
    part = whole(layers_of(name))
    loss, gradients = reference(part, *data())
    with torch.no_grad():
        predicted, _ = part.eval()(data()[0], {})
    for found in zip(*gloo.run(every_cut, name, stages, size=stages), strict=True):
        balance = found[0][0]
        assert [rank[1] for rank in found] == [pytest.approx(loss, rel=1e-6)] * stages, balance
        error, where = largest_error(merged(rank[2] for rank in found), gradients)
        assert error <= 1e-6 * max(1.0, loss), (balance, where, error)
        torch.testing.assert_close(found[-1][3], predicted)


class Measured(nn.Module):
    """Looks at the numbers, which tensors without memory do not have; the shape is fixed."""

    def forward(self, x):
        large = x.detach().numpy().max() > 1e9 or x.sum().item() > 1e9
        return x * 2 if large else x


def measured():
    layers = on_meta(lambda: nn.Sequential(nn.Linear(4, 6), Measured(), nn.Linear(6, 3)))
    own = Rig(layers, make_grid(2), balance=[2, 1])
    return own.step(*data())


def test_a_layer_that_looks_at_numbers_is_run_on_zeros_to_find_its_shape(gloo):
    layers = on_meta(lambda: nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)))
    expected, _ = reference(whole(layers), *data())
    assert gloo.run(measured, size=2) == [pytest.approx(expected)] * 2


def complex_skips(workers, per_worker):
    layers = on_meta(
        lambda: nn.Sequential(
            nn.Linear(4, 6), LeaveSpectrum(), nn.Linear(6, 6), nn.Tanh(), TakeSpectrum()
        )
    )
    own = Rig(layers, make_grid(workers), per_worker=per_worker, balance=[2, 1, 1, 1])
    return own.step(*data()), own.gradients()


@pytest.mark.parametrize(("workers", "per_worker"), [(4, 1), (2, 2)])
def test_complex_skips_bring_their_gradients_back(gloo, workers, per_worker):
    ((loss, expected),) = gloo.run(complex_skips, 1, 4, size=1)
    ranks = gloo.run(complex_skips, workers, per_worker, size=workers)
    assert [found for found, _ in ranks] == [pytest.approx(loss, rel=1e-6)] * workers
    error, where = largest_error(merged(gradients for _, gradients in ranks), expected)
    assert error <= 1e-6 * max(1.0, loss), where


def cast_skips(workers, skip):
    layers = on_meta(
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.LayerNorm(6), Leave(), nn.Linear(6, 6), nn.Softmax(1), Take()
        )
    )
    own = Rig(layers, make_grid(workers), skip=skip, autocast=torch.bfloat16)
    return own.step(*data()), own.gradients()


@pytest.mark.parametrize("skip", ["portal", "tuple"])
def test_under_autocast_skips_of_full_precision_arrive(gloo, skip):
    ((loss, expected),) = gloo.run(cast_skips, 1, skip, size=1)
    ranks = gloo.run(cast_skips, 3, skip, size=3)
    for found, _ in ranks:
        assert found == pytest.approx(loss, rel=0.02)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    error, where = largest_error(merged(gradients for _, gradients in ranks), expected)
    assert error <= 0.02 * scale, where


@pytest.mark.parametrize(
    ("dtype", "travels_as"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.int64, torch.float64),
        (torch.int32, torch.float32),
        (torch.int16, torch.float16),
        (torch.uint8, torch.float32),
        (torch.bool, torch.float32),
    ],
)
def test_types_travel_as_floats(dtype, travels_as):
    assert wire_spec(Spec((2, 3), dtype)) == Spec((2, 3), travels_as)


def test_a_type_that_cannot_cross_is_named():
    with pytest.raises(TypeError, match=r"complex64 reaches a boundary.*floats, bool and integers"):
        wire_spec(Spec((2,), torch.complex64))
