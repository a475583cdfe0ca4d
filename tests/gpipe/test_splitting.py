"""Layers whose backward pass cannot be split are named before the start; the others are right."""

import pytest
import torch
from shared_pipelines import Rig, largest_error, merged, on_meta, reference, whole
from torch import nn
from torch.utils.checkpoint import checkpoint

from raykb.gpipe.check import pipeline_problems
from raykb.gpipe.grid import make_grid
from raykb.gpipe.probe import Spec
from raykb.gpipe.splitting import split_problems
from raykb.models.resnet import small_resnet_sequential
from raykb.models.unet import unet
from raykb.runtime.stages import PipelineSettings

WIDTH = 6


class Inner(nn.Module):
    """A layer with weights of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


class Reentrant(Inner):
    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=True) if x.requires_grad else self.inner(x)


class Recomputed(Inner):
    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Doubling(Inner):
    def forward(self, x):
        y = self.inner[0](x)
        if y.requires_grad:
            y.register_hook(lambda gradient: 2 * gradient)
        return y


class Scale(torch.autograd.Function):
    """Multiply by a weight; both gradients, whichever is asked for."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0)


class ScaleOnce(torch.autograd.Function):
    """The same, which forgets what it needs as soon as it has used it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.kept = x, weight
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.kept
        del ctx.kept
        return gradient * weight, (gradient * x).sum(0)


class Hidden(torch.autograd.Function):
    """Run a module whose weights autograd does not see, as reversible layers do."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.x, ctx.module = x.detach(), module
        return module(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            x = ctx.x.requires_grad_()
            ctx.module(x).backward(gradient)
        return x.grad, None


class Scaled(nn.Module):
    def __init__(self, function=Scale):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH))
        self.function = function

    def reset_parameters(self):
        nn.init.normal_(self.weight)

    def forward(self, x):
        return self.function.apply(x, self.weight)


class Invisible(Inner):
    def forward(self, x):
        return Hidden.apply(x, self.inner)


class Seeing(Doubling):
    """A layer that must see numbers, which the meta device has not."""

    def forward(self, x):
        return super().forward(x) if bool((x > -1).any()) else x


class Twice(Inner):
    """Use the same weights one after the other, and side by side."""

    def forward(self, x):
        return self.inner(x) * self.inner(self.inner[1](x))


class Apart(nn.Module):
    """Weights that no gradient of the input passes, beside one that it does."""

    def __init__(self):
        super().__init__()
        self.table, self.line = nn.Embedding(3, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.table((x[:, 0] > 0).long()) + self.line(x.detach())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return self.cell(x[:, None].expand(-1, 3, -1))[0][:, -1]


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.2, batch_first=True)

    def forward(self, x):
        return self.layer(x[:, None].expand(-1, 3, -1))[:, 0]


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.convolution(x.view(-1, 1, 2, 3))).mean(1).flatten(1)


ABLE = {
    "own function": Scaled,
    "recomputed": Recomputed,
    "invisible": Invisible,
    "twice": Twice,
    "apart": Apart,
    "recurrent": Recurrent,
    "attentive": Attentive,
    "images": Images,
    "in place": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)),
    "nothing to train": nn.Tanh,
    "frozen": lambda: nn.Linear(WIDTH, WIDTH).requires_grad_(False),
}
UNABLE = {
    "reentrant": (Reentrant, "use_reentrant=True"),
    "hooked": (Doubling, "torch would call the hook twice"),
    "hooked, seeing numbers": (Seeing, "torch would call the hook twice"),
    "once": (lambda: Scaled(ScaleOnce), "no attribute 'kept'"),
}


def stack(middle):
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), middle(), nn.Linear(WIDTH, WIDTH))


def data():
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.arange(8, dtype=torch.float64) / 8


def doubled(layers):
    return [(name, layer.to(torch.float64)) for name, layer in layers]


def stepped(kinds, schedule):
    grid = make_grid(2)
    cuts, per_worker = ([1, 1, 1], 2) if schedule == "zbv" else ([1], 1)
    options = {"schedule": schedule, "checkpoint": "never", "per_worker": per_worker}
    found = []
    for kind in kinds:
        layers = doubled(on_meta(stack, ABLE[kind]))
        own = Rig(layers, grid, balance=[*cuts, len(layers) - sum(cuts)], **options)
        found.append((own.step(*data(), 4), own.gradients()))
    return found


def compared(by_rank, layers):
    """Return loss and largest error against the model in one piece; no gradient counts as zero."""
    loss, expected = reference(whole(layers), *data(), number=4)
    found = merged(gradients for _, gradients in by_rank)
    return loss, largest_error(known(found), known(expected))


def known(gradients):
    return {name: torch.zeros(()) if g is None else g for name, g in gradients.items()}


@pytest.mark.parametrize("schedule", ["zero_bubble", "zbv"])
def test_layers_that_can_split_give_the_gradients_of_one_device(gloo, schedule):
    by_rank = gloo.run(stepped, list(ABLE), schedule, size=2)
    for number, kind in enumerate(ABLE):
        layers = doubled(on_meta(stack, ABLE[kind]))
        assert split_problems(layers, [Spec((8, WIDTH), torch.float64)]) == [], kind
        loss, (error, where) = compared([rank[number] for rank in by_rank], layers)
        assert by_rank[0][number][0] == pytest.approx(loss, rel=1e-12), kind
        assert error <= 1e-12, (kind, where)


@pytest.mark.parametrize("kind", UNABLE)
def test_layers_that_cannot_split_are_named_with_the_reason(kind):
    middle, reason = UNABLE[kind]
    layers = on_meta(stack, middle)
    (problem,) = split_problems(layers, [Spec((4, WIDTH), torch.float32)])
    assert problem.startswith("layer '2' cannot split its backward pass: ")
    assert reason in problem
    assert problem.endswith("take the schedule 1f1b or interleaved")


def unrefused():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raykb.gpipe.pipeline.split_problems", lambda layers, specs, bare: [])
        layers = doubled(on_meta(stack, Doubling))
        own = Rig(layers, make_grid(2), balance=[1, 3], schedule="zero_bubble", checkpoint="never")
        return own.step(*data(), 4), own.gradients()


def test_the_gradients_of_a_hooked_layer_would_be_wrong_without_a_word(gloo):
    layers = doubled(on_meta(stack, Doubling))
    _, (error, where) = compared(gloo.run(unrefused, size=2), layers)
    assert error > 1e-3
    assert where.startswith("2.")


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_the_settings_refuse_such_a_layer_before_the_start(schedule):
    settings = PipelineSettings(schedule=schedule, checkpoint="never", balance=[2, 2])
    problems = settings.problems(on_meta(stack, Doubling), torch.zeros(1, WIDTH, device="meta"), 8)
    assert len(problems) == (schedule == "zero_bubble")


def refused(kind):
    layers = on_meta(stack, UNABLE[kind][0])
    own = Rig(layers, make_grid(2), balance=[1, 3], schedule="zero_bubble", checkpoint="never")
    with pytest.raises(ValueError, match="layer '2' cannot split its backward pass"):
        own.step(torch.zeros(8, WIDTH), torch.zeros(8))
    return own.predict(torch.zeros(8, WIDTH), torch.zeros(8))


def test_a_pipeline_refuses_its_first_step_and_predicts_all_the_same(gloo):
    assert gloo.run(refused, "hooked", size=2)[1].shape == (8, WIDTH)


@pytest.mark.parametrize("schedule", ["zero_bubble", "zbv"])
@pytest.mark.parametrize("checkpoint", ["always", "except_last"])
def test_recomputation_is_refused_with_its_remedy(schedule, checkpoint):
    per_worker = 2 if schedule == "zbv" else 1
    options = {"stages": 4, "micro_batches": 8, "batch_size": 8, "stages_per_worker": per_worker}
    layers = [(str(i), nn.Linear(2, 2)) for i in range(4)]
    found = pipeline_problems(layers, schedule=schedule, checkpoint=checkpoint, **options)
    assert found == [
        f"checkpoint: {checkpoint!r}, must be never with the schedule {schedule}: what is "
        "recomputed is back-propagated as one; the schedule 1f1b needs less memory"
    ]
    assert pipeline_problems(layers, schedule=schedule, checkpoint="never", **options) == []


@pytest.mark.parametrize(
    ("build", "arguments", "shape"),
    [(unet, (1, 4, 2), (2, 3, 16, 12)), (small_resnet_sequential, (5,), (2, 3, 12, 12))],
)
def test_the_networks_of_the_house_can_split_and_stay_as_they_are(build, arguments, shape):
    layers = on_meta(build, *arguments)
    before = {name: dict(layer.named_buffers()) for name, layer in layers}
    assert split_problems(layers, [Spec(shape, torch.float32)]) == []
    assert all(dict(layer.named_buffers()) == before[name] for name, layer in layers)
    assert all(p.grad is None for _, layer in layers for p in layer.parameters())
