"""The device without a device: it finds what it is there to find, and nothing else."""

import copy

import pytest
import torch
from fake_cuda import CUDA, LeftOnCpu, fake_cuda
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def rows(count=4):
    return torch.arange(float(count * 3)).view(count, 3)


def on_device(value):
    return value.device == CUDA


def test_a_tensor_that_was_left_on_the_cpu_is_named_with_its_place():
    with fake_cuda() as gpu, pytest.raises(LeftOnCpu) as raised:
        gpu.moved(rows()) + rows()
    text = str(raised.value)
    assert text.startswith("tests/contracts/test_fake_cuda.py test_a_tensor_that_was_left_on_the")
    assert text.endswith("aten.add.Tensor has on the CPU torch.float32 (4, 3)")


class Forgetful(nn.Module):
    """Keeps a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(3, 2), torch.ones(2)

    def forward(self, x):
        return self.linear(x) + self.shift


def test_a_module_moves_its_parameters_and_buffers_and_nothing_else():
    with fake_cuda() as gpu:
        layer = gpu.moved(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
        assert all(map(on_device, layer.state_dict().values()))
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in layer.parameters())
        assert layer(gpu.moved(rows())).shape == (4, 2)
        with pytest.raises(LeftOnCpu, match=r"forward: aten.add.Tensor has on the CPU .* \(2,\)"):
            gpu.moved(Forgetful())(gpu.moved(rows()))


def test_modules_on_the_device_can_be_copied_and_averaged():
    with fake_cuda() as gpu:
        layer = gpu.moved(nn.Linear(3, 2))
        averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for _ in range(3):
            averaged.update_parameters(layer)
        assert on_device(averaged(gpu.moved(rows())))
        assert on_device(copy.deepcopy(layer).weight)


def test_what_a_gpu_permits_is_permitted():
    with fake_cuda() as gpu:
        x = gpu.moved(rows())
        assert on_device(x * torch.tensor(2.0))
        assert on_device(x[torch.tensor([0, 2])])
        assert on_device(torch.empty_like(x).copy_(rows()))
        assert on_device(torch.tensor([1.0], device=x.device))
    assert gpu.waits == []


def test_the_cpu_computes_as_ever():
    with fake_cuda() as gpu:
        assert rows().sum().item() == 66.0
        assert rows()[rows()[:, 0] > 5].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert gpu.waits == []


def test_autocast_has_its_type_on_the_device():
    with fake_cuda() as gpu, torch.autocast("cuda", torch.bfloat16):
        assert gpu.moved(nn.Linear(3, 2))(gpu.moved(rows())).dtype == torch.bfloat16


ASKED = {
    "a number": (lambda x: bool((x > 1).any()), True, False),
    "whether tensors are equal": (lambda x: torch.equal(x, x), True, False),
    "how many are not zero": (lambda x: tuple(x.nonzero().shape), (12, 2), (0, 2)),
    "the greatest number to count": (
        lambda x: len(torch.bincount(x[0].long(), minlength=5)), 5, 5,
    ),
    "rows of a mask": (lambda x: tuple(x[x[:, 0] > 1].shape), (4, 3), (0, 3)),
    "a copy to the host": (lambda x: x.cpu().tolist(), [[0.0] * 3] * 4, [[0.0] * 3] * 4),
}  # fmt: skip


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("what", ASKED)
def test_what_waits_for_the_device_is_listed_and_goes_on(what, inference):
    ask, *expected = ASKED[what]
    for answer, value in zip((True, False), expected, strict=True):
        with fake_cuda(answer=answer) as gpu, torch.inference_mode(inference):
            assert ask(gpu.moved(rows())) == value
            ask(gpu.moved(rows()))
        assert gpu.waits == [f"tests/contracts/test_fake_cuda.py <lambda>: {what}"]


def test_other_ways_to_ask_are_listed_too():
    ways = {
        "a number": [
            lambda x: x.tolist(),
            lambda x: float(x.sum()),
            lambda x: x.long().sum().item(),
        ],
        "a copy to the host": [lambda x: rows().copy_(x), lambda x: x.to("cpu", torch.float64)],
        "rows of a mask": [
            lambda x: x.masked_select(x > 1),
            lambda x: x.index_put_((x[:, 0] > 1,), torch.ones_like(x)),
        ],
    }
    for what, asks in ways.items():
        for ask in asks:
            with fake_cuda() as gpu:
                ask(gpu.moved(rows()))
            assert [place.partition(": ")[2] for place in gpu.waits] == [what]


def test_a_mask_that_is_filled_with_a_number_does_not_wait():
    with fake_cuda() as gpu:
        x = gpu.moved(rows())
        x[x[:, 0] > 1] = 0.0
        assert on_device(x.masked_fill(x > 1, 2.0))
    assert gpu.waits == []


def test_a_function_that_asks_may_have_an_answer_of_its_own():
    def found(x):
        return bool(x.any())

    with fake_cuda(answers={"found": False}) as gpu:
        assert not found(gpu.moved(rows()))
        assert bool(gpu.moved(rows()).any())


def test_everything_is_as_before_afterwards():
    before = nn.Module._apply
    with pytest.raises(KeyError), fake_cuda():
        raise KeyError
    assert nn.Module._apply is before
    assert nn.Linear(3, 2).double()(rows().double()).dtype == torch.float64
