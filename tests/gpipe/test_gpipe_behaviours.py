"""What GPipe does with micro-batches: same numbers, ordered, nothing kept, failures told."""

import copy
import gc
import itertools
import threading
import time
import weakref

import pytest
import torch
from grids import thinned
from torch import nn
from torch.nn import functional

from raykb.gpipe import GPipe, is_checkpointing, is_recomputing
from raykb.gpipe.dependency import fork, join
from raykb.gpipe.local import clock_cycles, workers
from raykb.gpipe.skip import Namespace, pop, skippable, stash
from raykb.models.unet import unet

MODES = ["always", "except_last", "never"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@skippable(stash=["x"])
class Keep(nn.Module):
    def forward(self, x):
        yield stash("x", x)
        return torch.tanh(x)


@skippable(pop=["x"])
class Add(nn.Module):
    def forward(self, x):
        return x + (yield pop("x"))


@skippable(stash=["x"])
class KeepNothing(nn.Module):
    def forward(self, x):
        yield stash("x", None)
        return x


@skippable(pop=["x"])
class TakeNothing(nn.Module):
    def forward(self, x):
        assert (yield pop("x")) is None
        return x


def residual():
    """Six layers with a long skip around a short one."""
    outer, inner = Namespace(), Namespace()
    return nn.Sequential(
        Keep().isolate(outer),
        nn.Linear(3, 3),
        Keep().isolate(inner),
        nn.Linear(3, 3),
        Add().isolate(inner),
        Add().isolate(outer),
    )


def gradients(model, x, **arguments):
    """Output, input gradient and parameter gradients of a mean loss."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    output = model(x, **arguments)
    (output**2).mean().backward()
    return [output.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


BALANCES = {1: [6], 2: [2, 4], 3: [1, 2, 3]}


@pytest.mark.parametrize(
    ("mode", "parts", "samples", "dtype"),
    thinned(MODES, [1, 2, 3], [8, 7, 3], [torch.float32, torch.float64]),
)
def test_gradients_are_those_of_the_whole_model(mode, parts, samples, dtype):
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    plain = residual().to(dtype)
    x = torch.randn(samples, 3, dtype=dtype)
    expected = gradients(plain, x)
    pipe = GPipe(copy.deepcopy(plain), BALANCES[parts], chunks=4, checkpoint=mode)
    for one, other in zip(gradients(pipe, x), expected, strict=True):
        assert (one - other).abs().max() <= bound


@pytest.mark.parametrize("mode", MODES)
def test_a_u_net_in_three_parts_has_the_gradients_of_the_whole(mode):
    plain = unet(1, 2, depth=2, dropout=0.0)
    thirds = [len(plain) // 3, len(plain) // 3, len(plain) - 2 * (len(plain) // 3)]
    x = torch.randn(6, 3, 16, 16)
    expected = gradients(plain, x)
    pipe = GPipe(copy.deepcopy(plain), thirds, chunks=4, checkpoint=mode)
    for one, other in zip(gradients(pipe, x), expected, strict=True):
        assert (one - other).abs().max() <= 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_gradients_add_up_over_calls(mode):
    plain = residual()
    x = torch.randn(8, 3)
    pipe = GPipe(copy.deepcopy(plain), [3, 3], chunks=4, checkpoint=mode)
    for model in (plain, pipe):
        for _ in range(2):
            model(x).mean().backward()
    for one, other in zip(pipe.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("micro_batches", "parts", "cycles"),
    [
        (1, 1, [[(0, 0)]]),
        (1, 3, [[(0, 0)], [(0, 1)], [(0, 2)]]),
        (3, 1, [[(0, 0)], [(1, 0)], [(2, 0)]]),
        (
            3,
            3,
            [
                [(0, 0)],
                [(1, 0), (0, 1)],
                [(2, 0), (1, 1), (0, 2)],
                [(2, 1), (1, 2)],
                [(2, 2)],
            ],
        ),
        (4, 2, [[(0, 0)], [(1, 0), (0, 1)], [(2, 0), (1, 1)], [(3, 0), (2, 1)], [(3, 1)]]),
    ],
)
def test_clock_cycles(micro_batches, parts, cycles):
    assert list(clock_cycles(micro_batches, parts)) == cycles


class Mark(nn.Module):
    """Writes down which micro-batch passes, forward and backward; its number is its value."""

    def __init__(self, part, log):
        super().__init__()
        self.part, self.log, self.one = part, log, nn.Parameter(torch.ones(()))

    def forward(self, x):
        if not is_recomputing():
            self.log.append(("F", int(x.detach().flatten()[0]), self.part))
        return _Mark.apply(x * self.one, self.part, self.log)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, part, log):
        ctx.place, ctx.log = ("B", int(x.flatten()[0]), part), log
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.log.append(ctx.place)
        return gradient, None, None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_forward_goes_in_clock_cycles_and_backward_last_to_first(mode, requires_grad):
    log = []
    model = nn.Sequential(*(Mark(part, log) for part in range(3)))
    pipe = GPipe(model, [1, 1, 1], chunks=4, checkpoint=mode)
    x = torch.arange(4.0).view(4, 1).requires_grad_(requires_grad)
    pipe(x).sum().backward()
    forward = [("F", i, j) for cycle in clock_cycles(4, 3) for i, j in cycle]
    assert log[: len(forward)] == forward
    for part in range(3):
        order = [i for kind, i, j in log if kind == "B" and j == part]
        assert order == [3, 2, 1, 0]


def reachable(node):
    """All nodes that backward comes to from ``node``."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return seen


def test_forks_and_joins_tie_graphs_and_pass_gradients():
    a, b, still = (
        torch.ones(1, requires_grad=True),
        torch.ones(1, requires_grad=True),
        torch.ones(1),
    )
    (x, same), phony = fork([a, still])
    assert same is still
    assert phony.numel() == 0
    y, same = join([b, still], phony)
    assert same is still
    assert x.grad_fn in reachable(y.grad_fn)
    (2 * x + 3 * y).backward()
    assert (a.grad.item(), b.grad.item()) == (2, 3)


def test_forks_and_joins_leave_no_trace_where_no_backward_pass_can_follow():
    x = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        (same,), phony = fork([x])
    assert same is x
    assert phony is None
    assert join([x], phony)[0] is x
    assert fork([x.detach()])[1] is None


@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_order_of_backward_passes_is_an_edge_of_the_graph(requires_grad):
    made = []

    class Made(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            made.append(y.grad_fn)
            return y

    pipe = GPipe(nn.Sequential(Made(1, 1)), [1], chunks=3, checkpoint="never")
    outputs = pipe(torch.rand(3, 1).requires_grad_(requires_grad))
    own = [node for node, _ in outputs.grad_fn.next_functions]  # of the concatenation
    for before, after in itertools.pairwise(range(3)):
        start = made[after] if requires_grad else own[after]
        assert made[before] in reachable(start)
        assert made[after] not in reachable(own[before])


def test_parts_go_in_lock_step():
    timeline = []

    class Delayed(nn.Module):
        def __init__(self, part, delay_s):
            super().__init__()
            self.part, self.delay_s, self.count = part, delay_s, itertools.count()

        def forward(self, x):
            time.sleep(self.delay_s)
            timeline.append((next(self.count), self.part))
            return x

    pipe = GPipe(nn.Sequential(Delayed(0, 0), Delayed(1, 0.02)), [1, 1], chunks=3)
    pipe(torch.rand(3, 1))
    assert timeline == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (2, 1)]


class Oops(Exception):
    pass


class Fail(nn.Module):
    def forward(self, x):
        raise Oops("told")


@pytest.mark.parametrize("mode", ["always", "never"])
def test_an_exception_arrives_as_it_is_with_its_place(mode):
    pipe = GPipe(nn.Sequential(nn.Linear(1, 1), Fail()), [1, 1], chunks=2, checkpoint=mode)
    with pytest.raises(Oops, match="told") as raised:
        pipe(torch.rand(2, 1))
    assert raised.value.__notes__ == ["part 1, micro-batch 0"]
    assert (is_checkpointing(), is_recomputing()) == (False, False)


def test_an_exception_stops_the_parts_before_it():
    passed = []

    class Count(nn.Module):
        def forward(self, x):
            passed.append(1)
            return x

    layers = [nn.Identity(), nn.Identity(), Count(), Fail()]
    pipe = GPipe(nn.Sequential(*layers), [1, 1, 1, 1], chunks=3)
    with pytest.raises(Oops):
        pipe(torch.rand(3, 1))
    assert len(passed) == 2


def test_an_exception_in_the_last_of_three_parts_does_not_hang():
    model = nn.Sequential(nn.Identity(), nn.Identity(), Fail())
    with pytest.raises(Oops):
        GPipe(model, [1, 1, 1], chunks=3)(torch.rand(3, 1))


def test_statistics_that_a_failed_call_left_do_not_count():
    class Gate(nn.Module):
        shut = True

        def forward(self, x):
            if self.shut:
                raise Oops
            return x

    gate = Gate()
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0), gate)
    pipe = GPipe(model, [1, 1], chunks=2, deferred_batch_norm=True)
    x = torch.randn(4, 1)
    with pytest.raises(Oops):
        pipe(x + 100)
    gate.shut = False
    pipe(x)
    assert pipe[0].num_batches_tracked == 1
    torch.testing.assert_close(pipe[0].running_mean, x.mean(0))


def test_jobs_of_several_devices_have_a_thread_each_and_are_all_awaited():
    devices = [torch.device("cpu"), torch.device("meta"), torch.device("cpu")]
    ended = []

    def slow():
        time.sleep(0.05)
        ended.append(1)
        return threading.get_ident(), torch.is_grad_enabled(), torch.get_autocast_dtype("cpu")

    def fail():
        raise Oops

    before = threading.active_count()
    with torch.no_grad(), torch.autocast("cpu", torch.float16), workers(devices) as do_all:
        results = do_all([(device, slow) for device in devices])
        with pytest.raises(Oops):
            do_all([(devices[1], fail), (devices[0], slow)])
    assert threading.active_count() == before
    assert len(ended) == 4
    threads = [thread for thread, *_ in results]
    assert threads[0] == threads[2] != threads[1]
    assert threading.get_ident() not in threads
    assert [modes for _, *modes in results] == [[False, torch.float16]] * 3


def test_parts_on_two_devices_hand_over_values_and_skips():
    # The meta device computes shapes and types alone, and is on every machine.
    pipe = GPipe(residual(), [2, 4], devices=["cpu", "meta"], chunks=4, checkpoint="always")
    assert [p.device.type for p in pipe.parameters()] == ["cpu"] * 2 + ["meta"] * 2
    with torch.autocast("cpu", torch.bfloat16):
        output = pipe(torch.randn(7, 3, requires_grad=True))
    assert output.device.type == "meta"
    assert output.shape == (7, 3)
    assert output.requires_grad


def gpus(count):
    return pytest.mark.skipif(torch.cuda.device_count() < count, reason=f"needs {count} GPUs")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "places",
    [
        pytest.param(["cuda:0"] * 3, marks=gpus(1)),
        pytest.param(["cpu", "cuda:0", "cpu"], marks=gpus(1)),
        pytest.param(["cuda:0", "cpu", "cuda:0"], marks=gpus(1)),
        pytest.param(["cuda:0", "cuda:1", "cuda:0"], marks=gpus(2)),
    ],
    ids=lambda places: "-".join(places),
)
def test_gradients_on_gpus_are_those_on_the_cpu(mode, places):
    plain = nn.Sequential(*residual(), *residual()).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    expected = gradients(plain, x)
    pipe = GPipe(copy.deepcopy(plain), [3, 4, 5], devices=places, chunks=4, checkpoint=mode)
    for _ in range(3):
        got = gradients(pipe, x.to(places[0]))
    for one, other in zip(got, expected, strict=True):
        assert (one.cpu() - other).abs().max() <= 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_skips_of_nothing_pass(mode):
    model = nn.Sequential(KeepNothing(), nn.Identity(), TakeNothing())
    pipe = GPipe(model, [1, 1, 1], chunks=3, checkpoint=mode)
    x = torch.rand(3, requires_grad=True)
    pipe(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_no_skip_outlives_its_use(mode, training):
    stashed = []

    @skippable(stash=["x"])
    class Watched(nn.Module):
        def forward(self, x):
            skip = x * 2
            stashed.append(weakref.ref(skip))
            yield stash("x", skip)
            return x

    model = nn.Sequential(Watched(), nn.Identity(), Add())
    pipe = GPipe(model, [1, 1, 1], chunks=2, checkpoint=mode).train(training)
    output = pipe(torch.rand(4, requires_grad=True))
    # An addition saves nothing, so nothing that was stashed is needed any more.
    assert [skip() for skip in stashed] == [None] * 2
    output.sum().backward()
    assert [skip() for skip in stashed if skip() is not None] == []


@pytest.mark.parametrize("devices", [["cpu"] * 3, ["cpu", "meta", "meta"]])
def test_a_skip_is_gone_in_the_cycle_after_its_use(devices):
    stashed, alive = [], []

    @skippable(stash=["x"])
    class Watched(nn.Module):
        def forward(self, x):
            skip = x * 2
            stashed.append(weakref.ref(skip))
            yield stash("x", skip)
            return x

    class Look(nn.Module):
        def forward(self, x):
            alive.append(stashed[len(alive)]() is not None)
            return x

    model = nn.Sequential(Watched(), Add(), Look())
    with torch.no_grad():
        GPipe(model, [1, 1, 1], devices=devices, chunks=4)(torch.rand(4))
    assert alive == [False] * 4


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_kept_after_backward(mode):
    kept = []

    class Watched(nn.Module):
        def forward(self, x):
            y = x.exp()
            kept.append(weakref.ref(y))
            return y

    pipe = GPipe(nn.Sequential(Watched(), nn.Linear(2, 2), Watched()), [1, 1, 1], chunks=3)
    pipe.checkpoint = mode
    gc.disable()  # what is freed is freed at once, not some time
    try:
        pipe(torch.rand(3, 2, requires_grad=True)).sum().backward()
        assert all(tensor() is None for tensor in kept)
    finally:
        gc.enable()


def test_a_skip_is_not_stored_by_the_parts_between():
    sizes = []

    class Between(nn.Linear):
        def forward(self, x):
            sizes.append(x.shape)
            return super().forward(x)

    saved = []

    def pack(tensor):
        saved.append(tensor.shape)
        return tensor

    @skippable(stash=["x"])
    class Wide(nn.Module):
        def forward(self, x):
            yield stash("x", x.repeat(1, 50))
            return x

    @skippable(pop=["x"])
    class Mean(nn.Module):
        def forward(self, x):
            return x + (yield pop("x")).mean(1, keepdim=True)

    model = nn.Sequential(Wide(), Between(2, 2), Between(2, 2), Mean())
    pipe = GPipe(model, [1, 1, 1, 1], checkpoint="always")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pipe(torch.rand(3, 2, requires_grad=True))
    assert saved == [(3, 2), (3, 2), (3, 2), (3, 2), (3, 100)]


class Dropouts(nn.Module):
    def forward(self, x):
        for _ in range(20):
            x = functional.dropout(x, p=0.02)
        return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", [Dropouts, lambda: nn.Dropout(0.3)])
def test_dropout_is_the_same_when_it_is_recomputed(mode, layer):
    x = torch.rand(10, 10, requires_grad=True)
    pipe = GPipe(nn.Sequential(layer(), layer()), [1, 1], chunks=10, checkpoint=mode)
    y = pipe(x)
    y.norm().backward()
    assert torch.equal(y == 0, x.grad == 0)
    assert 0 < (y == 0).float().mean() < 1


def test_a_hook_that_draws_random_numbers_draws_the_same_when_it_is_recomputed():
    x = torch.rand(10, 10, requires_grad=True)
    pipe = GPipe(nn.Sequential(nn.Identity(), nn.Identity()), [1, 1], checkpoint="always")
    pipe[0].register_forward_hook(lambda layer, inputs, output: functional.dropout(output, 0.3))
    y = pipe(x)
    y.norm().backward()
    assert torch.equal(y == 0, x.grad == 0)
    assert 0 < (y == 0).float().mean() < 1


def test_random_numbers_follow_the_default_generator_and_no_partitioning():
    layers = [nn.Linear(4, 4), nn.Dropout(), Dropouts(), nn.Linear(4, 4), nn.Dropout()]
    x = torch.randn(7, 4)
    results, after = [], []
    for balance, mode in itertools.product([[5], [2, 3], [1, 1, 1, 2]], MODES):
        pipe = GPipe(nn.Sequential(*copy.deepcopy(layers)), balance, chunks=4, checkpoint=mode)
        torch.manual_seed(3)
        results.append(gradients(pipe, x))
        after.append(torch.rand(1))
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert all(torch.equal(number, after[0]) for number in after)
    torch.manual_seed(4)
    assert not torch.equal(gradients(pipe, x)[0], results[0][0])
    assert not torch.equal(gradients(pipe, x)[0], gradients(pipe, x)[0])


def test_evaluation_draws_no_number():
    pipe = GPipe(nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), [1, 1], chunks=2).eval()
    x = torch.rand(2, 2)
    state = torch.get_rng_state()
    pipe(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision_gives_what_it_gives_the_whole_model(mode):
    plain, x = residual(), torch.randn(8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(plain, x)
        got = gradients(GPipe(copy.deepcopy(plain), [2, 4], chunks=4, checkpoint=mode), x)
    assert got[0].dtype == expected[0].dtype
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_flags_are_set_for_what_is_checkpointed_alone(mode):
    flags = []

    class Watch(nn.Module):
        def forward(self, x):
            flags.append((is_checkpointing(), is_recomputing()))
            return x * 1

    pipe = GPipe(nn.Sequential(Watch()), [1], chunks=2, checkpoint=mode)
    pipe(torch.rand(2, requires_grad=True)).sum().backward()
    first, again, plain = (True, False), (False, True), (False, False)
    expected = {
        "always": [first, first, again, again],
        "except_last": [first, plain, again],
        "never": [plain, plain],
    }
    assert flags == expected[mode]


def test_in_place_work_on_a_boundary_that_requires_grad_fails_in_backward():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(inplace=True))
    y = GPipe(model, [1, 1], checkpoint="always")(torch.rand(1))
    message = "a leaf Variable that requires grad .* used in an in-place operation"
    with pytest.raises(RuntimeError, match=message):
        y.backward()


def test_in_place_work_on_a_boundary_is_allowed_where_nothing_is_recomputed():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(inplace=True))
    GPipe(model, [1, 1], chunks=2, checkpoint="never")(torch.rand(2, 1)).sum().backward()
    assert model[0].weight.grad is not None


def test_in_place_work_on_any_other_boundary_is_refused_where_the_paper_library_is_wrong():
    class Grow(nn.Module):
        def forward(self, pair):
            first, second = pair
            return first * second.add_(1)

    first, second = torch.ones(1, requires_grad=True), torch.ones(1)
    output = GPipe(nn.Sequential(Grow()), [1], checkpoint="always")((first, second))
    with pytest.raises(RuntimeError, match=r"inputs \[1\] of a checkpointed part were changed"):
        output.backward()  # of 2; recomputed, it would be 3


def test_in_inference_mode_skips_pass_though_nobody_counts_changes():
    pipe, x = GPipe(residual(), [1, 2, 3], chunks=2).eval(), torch.rand(4, 3)
    with torch.no_grad():
        expected = pipe(x)
    with torch.inference_mode():
        assert torch.equal(pipe(x), expected)


def test_a_skip_may_be_sparse():
    @skippable(stash=["x"])
    class KeepSparse(nn.Module):
        def forward(self, x):
            yield stash("x", x.to_sparse())
            return x

    x = torch.rand(4, 4)
    pipe = GPipe(nn.Sequential(KeepSparse(), nn.Tanh(), Add()), [1, 1, 1])
    assert torch.equal(pipe(x), x.tanh() + x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("balance", [[2, 3], [2, 2, 1], [3, 2]])
def test_a_skip_that_a_later_part_changes_in_place_is_refused(mode, balance):
    @skippable(stash=["x"])
    class Hand(nn.Module):
        def forward(self, x):
            yield stash("x", x)
            return x

    def model():
        torch.manual_seed(1)
        layers = nn.Linear(4, 4), Hand(), nn.ReLU(inplace=True), nn.Linear(4, 4), Add()
        return nn.Sequential(*layers)

    plain, pipe = model(), GPipe(model(), balance, chunks=2, checkpoint=mode)
    x = torch.rand(4, 4)
    if balance != [3, 2]:  # one part both stashes it and changes it, as the whole model would
        with pytest.raises(ValueError, match="changes skip 'x' in place after an earlier one"):
            pipe(x)
        return
    plain(x).sum().backward()
    pipe(x).sum().backward()
    for one, other in zip(plain.parameters(), pipe.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("samples", [8, 7, 3])
def test_statistics_of_deferred_batch_norm_are_those_of_the_mini_batch(mode, samples):
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=None))
    pipe = GPipe(copy.deepcopy(plain), [1, 2], chunks=4, checkpoint=mode, deferred_batch_norm=True)
    steps = 0
    for training in (True, True, False, True):
        x = 1000 + 0.1 * torch.randn(samples, 3, 5, 5)
        for model in (pipe.train(training), plain.train(training)):
            model(x).mean().backward()
        steps += training
        assert pipe[0].num_batches_tracked == pipe[2].num_batches_tracked == steps
    torch.testing.assert_close(pipe[0].running_mean, plain[0].running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(pipe[0].running_var, plain[0].running_var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_deferred_batch_norm_against_a_float64_full_batch(mode):
    x = 1000 + 0.1 * torch.randn(14, 3, 5, 5)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=1.0), nn.Identity())
    pipe = GPipe(model, [1, 1], chunks=4, checkpoint=mode, deferred_batch_norm=True)
    pipe(x).mean().backward()
    values = x.double().transpose(0, 1).flatten(1)
    mean, variance = values.mean(1), values.var(1)
    torch.testing.assert_close(pipe[0].running_mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(pipe[0].running_var.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_gradients_with_deferred_batch_norm_and_one_chunk_are_those_of_batch_norm(mode):
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    pipe = GPipe(copy.deepcopy(plain), [1, 1], checkpoint=mode, deferred_batch_norm=True)
    x = torch.randn(4, 3, 5, 5)
    for one, other in zip(gradients(pipe, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(one, other)


def test_training_without_gradients_updates_statistics_too():
    pipe = GPipe(nn.Sequential(nn.BatchNorm1d(2)), [1], chunks=4, deferred_batch_norm=True)
    with torch.no_grad():
        pipe(torch.randn(6, 2))
    assert pipe[0].num_batches_tracked == 1


def test_frozen_parts_stay_without_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    pipe = GPipe(model, [1, 1, 1], chunks=2, checkpoint="never")
    pipe(torch.rand(4, 2)).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None
