import copy

import pytest
import torch
from torch import nn

from raykb.gpipe.profile import profile_sizes, profile_times
from raykb.parts.skip import Namespace, pop, skippable, stash


class Spy(nn.Module):
    """Notes how it is run."""

    seen: list

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        Spy.seen.append((self.training, self.runs.item(), x.flatten()[0].item(), x.requires_grad))
        return x * self.weight + torch.rand(())


@pytest.fixture(autouse=True)
def _nothing_seen():
    Spy.seen = []


def test_layers_are_run_in_training_mode_on_copies_from_the_same_sample():
    model = nn.Sequential(Spy(), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    profile_times(model, torch.full((2, 3), 7.0), timeout=0.02)
    assert len(Spy.seen) >= 2
    assert {(training, first) for training, _, first, _ in Spy.seen} == {(True, 7.0)}
    assert not any(layer.training for layer in model.modules())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_gradients_are_wanted_where_training_would_want_them():
    model = nn.Sequential(Spy(), Spy(), nn.ReLU(inplace=True))
    with torch.no_grad():
        profile_times(model, torch.zeros(2, 3), timeout=0)
    assert [seen[3] for seen in Spy.seen] == [False, True] * 2


def test_a_layer_is_charged_for_no_backward_function_of_python_before_it():
    class Before(nn.Module):
        def forward(self, x):
            seen.append(x.grad_fn.name())
            return x * 2

    seen = []
    profile_times(nn.Sequential(nn.Linear(3, 3), Before()), torch.zeros(2, 3), timeout=0)
    assert set(seen) == {"CloneBackward0"}


def test_the_sample_is_left_as_it_is():
    sample = torch.full((4,), -1.0)
    profile_times(nn.Sequential(nn.ReLU(inplace=True)), sample, timeout=0)
    assert sample.tolist() == [-1.0] * 4


def test_figures_are_per_layer_and_without_the_first_run(spend):
    class FirstIsSlow(Spy):
        def forward(self, x):
            result = super().forward(x)
            seconds = 5 if self.runs == 1 else 1
            spend(seconds)
            result.register_hook(lambda gradient: spend(2 * seconds))
            return result

    forward_s, backward_s = profile_times(
        nn.Sequential(FirstIsSlow(), nn.Flatten(), nn.Identity()), torch.zeros(2, 3), timeout=0
    )
    assert forward_s == [1, 0, 0]
    assert backward_s == [2, 0, 0]


def test_figures_are_read_from_a_clock_that_runs():
    model = nn.Sequential(Spy(), nn.Flatten(), nn.Identity())
    forward_s, backward_s = profile_times(model, torch.zeros(2, 3), timeout=0)
    assert len(forward_s) == len(backward_s) == 3
    assert min(forward_s + backward_s) > 0


def test_the_time_is_used(spend):
    class Second(Spy):
        def forward(self, x):
            spend(1)
            return super().forward(x)

    profile_times(nn.Sequential(Second()), torch.zeros(2, 3), timeout=0)
    assert len(Spy.seen) == 2
    profile_times(nn.Sequential(Second()), torch.zeros(2, 3), timeout=20)
    assert len(Spy.seen) == 2 + 20


def test_a_layer_without_memory_needs_something_that_gives_it_some():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="give materialise") as caught:
        profile_times(model, torch.zeros(2, 3))
    assert "'0'" in str(caught.value)
    assert "'2'" in str(caught.value)
    forward_s, _ = profile_times(
        model,
        torch.zeros(2, 3),
        timeout=0,
        materialise=lambda layer, name: copy.deepcopy(layer).to_empty(device="cpu"),
    )
    assert len(forward_s) == 3


def test_skips_pass_between_layers_that_are_made_one_by_one():
    model = unet_like()
    forward_s, backward_s = profile_times(
        model, torch.zeros(2, 4), timeout=0, materialise=lambda layer, name: copy.deepcopy(layer)
    )
    assert len(forward_s) == len(backward_s) == len(model)


# ---------------------------------------------------------------------- sizes


@skippable(stash=["left"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("left", torch.tanh(x))
        return torch.sigmoid(x)


@skippable(pop=["left"])
class Multiply(nn.Module):
    def forward(self, x):
        left = yield pop("left")
        return x * left


def unet_like():
    outer, inner = Namespace(), Namespace()
    return nn.Sequential(
        Leave().isolate(outer),
        Leave().isolate(inner),
        nn.Linear(4, 4),
        Multiply().isolate(inner),
        Multiply().isolate(outer),
    )


def test_each_memory_has_one_number_in_all_layers():
    sizes = profile_sizes(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(5, 4)
    )
    first, relu, last = sizes
    assert [size.parameters for size in sizes] == [4 * (32 + 8), 0, 4 * (16 + 2)]
    assert list(first.saved.values()) == [5 * 4 * 4]
    assert first.saved == first.inputs
    assert list(relu.inputs.values()) == [5 * 8 * 4]
    assert relu.saved == last.inputs  # what a rectifier returns is what it keeps
    assert last.saved == relu.saved
    assert relu.inputs.keys() != relu.saved.keys()


def test_skips_are_known_by_who_left_them():
    sizes = profile_sizes(unet_like(), torch.zeros(2, 4, requires_grad=True))
    assert [[(source, count) for source, _, count in size.popped] for size in sizes] == [
        [],
        [],
        [],
        [(1, 32)],
        [(0, 32)],
    ]
    assert sizes[3].popped[0][1] in sizes[1].saved


class Pair(nn.Module):
    def forward(self, x):
        return {"a": x.relu(), "b": [x.exp(), 3]}


class Unpair(nn.Module):
    def forward(self, value):
        return value["a"] + value["b"][0] * value["b"][1]


@pytest.mark.parametrize(
    ("model", "sample"),
    [
        (unet_like(), torch.zeros(2, 4, requires_grad=True)),
        (
            nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Dropout2d(0.1),
                nn.InstanceNorm2d(6),
                nn.LeakyReLU(0.01),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(6, 2),
            ),
            torch.zeros(4, 3, 8, 8),
        ),
        (nn.Sequential(Pair(), Unpair()), torch.zeros(2, 4, requires_grad=True)),
        (nn.Sequential(nn.Linear(4, 4).double(), nn.GELU()), torch.zeros(2, 4).double()),
    ],
    ids=["skips", "convolutions", "structures", "float64"],
)
def test_the_meta_device_gives_the_sizes_of_real_tensors(model, sample):
    real = profile_sizes(model, sample, device="cpu")
    meta = profile_sizes(model, sample)
    assert [size.name for size in meta] == [name for name, _ in model.named_children()]
    assert meta == real
    assert sum(map(len, (size.saved for size in real)))


def test_tensors_that_a_layer_makes_are_kept_for_their_gradients():
    class Noise(nn.Module):
        def forward(self, x):
            return x + x.new_zeros(5, requires_grad=True)  # which a sum does not save

    weight, noise = profile_sizes(nn.Sequential(nn.Linear(5, 5), Noise()), torch.zeros(2, 5))
    assert list(weight.saved.values()) == [2 * 5 * 4]
    assert list(noise.saved.values()) == [5 * 4]


def test_sizes_leave_the_model_and_the_random_numbers_as_they_are():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for device in ("meta", "cpu"):
        profile_sizes(model, torch.ones(2, 3), device=device)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert not any(layer.training for layer in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_would_not_fit_into_memory_is_measured():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**6, 10**6), nn.ReLU())
    linear, relu = profile_sizes(model, torch.empty(10**5, 10**6, device="meta"))
    assert linear.parameters == 4 * (10**12 + 10**6)
    assert list(relu.saved.values()) == [4 * 10**11]


def test_a_layer_that_must_see_numbers_is_named_with_the_remedy():
    class Choose(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    model = nn.Sequential(nn.Identity(), Choose())
    with pytest.raises(ValueError, match=r"layer '1' cannot run on meta: .*such as cpu"):
        profile_sizes(model, torch.zeros(2))
    assert len(profile_sizes(model, torch.zeros(2), device="cpu")) == 2
