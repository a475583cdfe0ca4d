"""The library's models in three stages: gradients, and what crosses the wire."""

import pytest
import torch
import torch.distributed as dist
from shared_pipelines import (
    Rig,
    even,
    largest_error,
    merged,
    on_meta,
    reference,
    whole,
)

from raykb.gpipe.grid import make_grid
from raykb.gpipe.links import RemotePortal
from raykb.models.amoebanet import amoebanet_d
from raykb.models.resnet import small_resnet_sequential
from raykb.models.unet import unet

NETWORKS = {
    "unet": (unet, (1, 4, 2), (8, 3, 16, 12)),
    "amoebanet": (amoebanet_d, (3, 16, 5), (8, 3, 32, 32)),
    "resnet": (small_resnet_sequential, (5,), (8, 3, 12, 12)),
}


def network_and_data(name, dtype=torch.float64):
    build, arguments, shape = NETWORKS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    layers = [(name, layer.to(dtype)) for name, layer in on_meta(build, *arguments)]
    return layers, x, torch.arange(8, dtype=dtype) / 8


def trained(name, balance, cases, dtype, per_worker=1):
    grid = make_grid(len(balance) // per_worker)
    found = []
    for schedule, checkpoint, skip in cases:
        layers, x, y = network_and_data(name, dtype)
        own = Rig(
            layers,
            grid,
            per_worker=per_worker,
            balance=balance,
            schedule=schedule,
            checkpoint=checkpoint,
            skip=skip,
        )
        loss = own.step(x, y, 4)
        found.append((loss, own.gradients()))
    return found


CASES = [
    ("gpipe", "except_last", "portal"),
    ("1f1b", "always", "portal"),
    ("gpipe", "never", "tuple"),
    ("1f1b", "except_last", "tuple"),
    ("gpipe_fifo", "always", "tuple"),
    ("zero_bubble", "never", "portal"),
]


@pytest.mark.parametrize(
    ("name", "dtype", "cases"),
    [
        ("unet", torch.float32, CASES),
        ("unet", torch.float64, CASES),
        ("resnet", torch.float32, CASES),
        ("resnet", torch.float64, CASES),
        # in float32 rounding alone moves its gradients by more
        ("amoebanet", torch.float64, CASES[1:3]),
        pytest.param("amoebanet", torch.float64, CASES, marks=pytest.mark.slow),
    ],
)
def test_three_stages_of_a_network_give_its_gradients(gloo, name, dtype, cases):
    layers, x, y = network_and_data(name, dtype)
    by_rank = gloo.run(trained, name, even(len(layers), 3), cases, dtype, size=3)
    loss, gradients = reference(whole(layers), x, y, number=4)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for number, case in enumerate(cases):
        losses = {rank[number][0] for rank in by_rank}
        assert len(losses) == 1
        assert losses.pop() == pytest.approx(loss, rel=tolerance), case
        error, where = largest_error(merged(rank[number][1] for rank in by_rank), gradients)
        scale = max(1.0, max(float(g.abs().max()) for g in gradients.values()))
        assert error <= tolerance * scale, (case, where, error)


@pytest.mark.parametrize("workers", [2, 3])
def test_skips_pass_through_a_v_of_stages_and_their_gradients_back(gloo, workers):
    layers, x, y = network_and_data("unet")
    cases = [("zbv", "never", skip) for skip in ("portal", "tuple")]
    balance = even(len(layers), 2 * workers)
    by_rank = gloo.run(trained, "unet", balance, cases, torch.float64, 2, size=workers)
    loss, gradients = reference(whole(layers), x, y, number=4)
    for number, case in enumerate(cases):
        assert by_rank[0][number][0] == pytest.approx(loss, rel=1e-12), case
        error, where = largest_error(merged(rank[number][1] for rank in by_rank), gradients)
        assert error <= 1e-12, (case, where)


def sent(balance, skip):
    """Return the bytes that this process sent to neighbours, and those that portals sent."""
    sizes = {"wire": 0, "portal": 0}
    real_op, real_start = dist.P2POp, RemotePortal._start

    def op(kind, tensor, *arguments, **options):
        sizes["wire"] += tensor.nbytes if kind is dist.isend else 0
        return real_op(kind, tensor, *arguments, **options)

    def start(self, tensor, group):
        sizes["portal"] += tensor.nbytes
        real_start(self, tensor, group)

    layers, x, y = network_and_data("unet")
    own = Rig(layers, make_grid(3), balance=balance, skip=skip)
    own.step(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "P2POp", op)
        patch.setattr(RemotePortal, "_start", start)
        own.step(x, y)
    return sizes


def test_with_portals_no_byte_of_a_skip_passes_the_middle_stage(gloo):
    layers, _, _ = network_and_data("unet")
    bottom = [i for i, (name, _) in enumerate(layers) if name.startswith("bottom")]
    balance = [bottom[0], len(bottom), len(layers) - bottom[-1] - 1]
    entering, leaving = 8 * (8 * 8 * 4 * 3), 8 * (8 * 8 * 4 * 3)  # (8, 8, 4, 3) float64
    skips = 8 * (8 * 4 * 16 * 12) + 8 * (8 * 8 * 8 * 6)
    portal = gloo.run(sent, balance, "portal", size=3)
    assert portal[1] == {"wire": entering + leaving, "portal": 0}
    assert portal[0] == {"wire": entering, "portal": skips}
    assert portal[2] == {"wire": leaving, "portal": skips}
    tuples = gloo.run(sent, balance, "tuple", size=3)
    assert tuples[1] == {"wire": entering + leaving + 2 * skips, "portal": 0}
    assert tuples[0] == {"wire": entering + skips, "portal": 0}
