"""Checkpointing: the same gradients, fewer activations, and what is run when."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from raykb.gpipe.checkpointing import checkpoint, is_checkpointing, is_recomputing


class Logged(torch.autograd.Function):
    """The identity, which writes down when it passes forward and backward."""

    @staticmethod
    def forward(ctx, log, name, tensor):
        ctx.log, ctx.name = log, name
        log.append(f"{name} forward")
        return tensor.detach()

    @staticmethod
    def backward(ctx, gradient):
        ctx.log.append(f"{ctx.name} backward")
        return None, None, gradient


def test_serial_checkpoints_are_recomputed_one_by_one_last_first():
    log = []
    first = checkpoint(lambda x: (Logged.apply(log, "a", x),), torch.ones(1, requires_grad=True))
    (last,) = checkpoint(lambda x: (Logged.apply(log, "b", x),), *first)
    last.backward()
    passed_once = ["a forward", "b forward"]
    assert log == [*passed_once, "b forward", "b backward", "a forward", "a backward"]


def test_recomputation_comes_before_the_nodes_between_need_the_gradient():
    # The functions' names are those that users of the paper's library look for in a graph.
    (out,) = checkpoint(lambda x: (x * 2,), torch.ones(1, requires_grad=True))
    assert out.grad_fn.name() == "RecomputeBackward"
    assert out.grad_fn.next_functions[0][0].name() == "CheckpointBackward"


@pytest.mark.parametrize("input_requires_grad", [True, False])
def test_gradients_are_those_without_checkpointing(input_requires_grad):
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=input_requires_grad)

    def run(x):
        return layer(x).tanh(), x.exp().sum(1)

    def gradients(outputs):
        layer.zero_grad()
        x.grad = None
        sum((output**2).sum() for output in outputs).backward()
        return [p.grad.clone() for p in (*layer.parameters(), x) if p.grad is not None]

    expected = gradients(run(x))
    got = gradients(checkpoint(run, x))
    assert len(expected) == 2 + input_requires_grad
    for one, other in zip(expected, got, strict=True):
        assert torch.equal(one, other)


def test_an_output_requires_grad_even_if_no_input_does_and_backward_runs():
    (out,) = checkpoint(lambda x: (x * 2,), torch.ones(1))
    assert out.requires_grad
    out.backward()


def test_integers_pass_and_unused_outputs_cost_nothing():
    weight = torch.ones(2, requires_grad=True)

    def run(x, index):
        return x * weight, index + 1, x.exp(), x.argmax()

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    scaled, index, _, largest = checkpoint(run, x, torch.tensor([1, 0]))
    assert index.tolist() == [2, 1]
    assert largest.item() == 1
    assert not index.requires_grad
    scaled.sum().backward()
    assert weight.grad.tolist() == [1.0, 2.0]
    assert x.grad.tolist() == [1.0, 1.0]


def test_a_run_of_integers_alone_is_just_run():
    (out,) = checkpoint(lambda index: (index + 1,), torch.tensor([1]))
    assert out.item() == 2
    assert not out.requires_grad


def test_flags_tell_the_first_run_from_the_second():
    flags = []

    def run(x):
        flags.append((is_checkpointing(), is_recomputing()))
        return (x,)

    (out,) = checkpoint(run, torch.zeros(1, requires_grad=True))
    out.backward()
    assert flags == [(True, False), (False, True)]
    run(torch.zeros(1))
    assert flags[2:] == [(False, False)]


def test_flags_are_taken_back_when_a_run_fails():
    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoint(fail, torch.zeros(1))
    assert (is_checkpointing(), is_recomputing()) == (False, False)


def test_without_gradients_it_is_a_call():
    flags = []

    def run(x):
        flags.append(is_checkpointing())
        return (x * 2,)

    with torch.no_grad():
        (out,) = checkpoint(run, torch.ones(1, requires_grad=True))
    assert not out.requires_grad
    assert flags == [False]


def test_backward_can_be_repeated_and_asked_for_some_inputs_only():
    x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    (out,) = checkpoint(lambda x, y: (3 * x * y,), x, y)
    assert torch.autograd.grad(out, x, retain_graph=True)[0].item() == 3
    out.backward(inputs=[y])
    assert y.grad.item() == 3
    assert x.grad is None


def test_second_derivatives_are_refused():
    x = torch.ones(1, requires_grad=True)
    (out,) = checkpoint(lambda x: (x**2,), x)
    (gradient,) = torch.autograd.grad(out**2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.backward()


def test_only_inputs_are_kept_until_backward_and_nothing_after_it():
    inside = []

    def run(x):
        hidden = x.exp()
        inside.append(weakref.ref(hidden))
        return (hidden.exp(),)

    x = torch.ones(3, requires_grad=True) * 1
    kept = weakref.ref(x)
    (out,) = checkpoint(run, x)
    assert inside[0]() is None
    out.sum().backward()
    assert inside[1]() is None
    del x, out
    gc.collect()
    assert kept() is None


def test_saved_bytes_are_those_of_the_inputs():
    saved = []

    def pack(tensor):
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        checkpoint(
            lambda x, y: (x.exp() * y.exp(),), torch.ones(5, requires_grad=True), torch.ones(1)
        )
    assert saved == [(5,), (1,)]


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_of_the_forward_run_is_restored(inside):
    layer, dtypes = nn.Linear(2, 2), []

    def run(x):
        out = layer(x)
        dtypes.append(out.dtype)
        return (out,)

    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        (out,) = checkpoint(run, torch.ones(1, 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        out.sum().backward()
    assert dtypes == [torch.bfloat16 if inside else torch.float32] * 2


def test_an_in_place_change_of_an_input_that_requires_grad_fails_in_backward():
    (out,) = checkpoint(lambda x: (functional.relu_(x),), torch.ones(1, requires_grad=True) * 1)
    message = "a leaf Variable that requires grad .* used in an in-place operation"
    with pytest.raises(RuntimeError, match=message):
        out.backward()


def test_an_in_place_change_of_any_other_input_fails_too_instead_of_happening_twice():
    (out,) = checkpoint(
        lambda x, y: (x * y.add_(1),), torch.ones(1, requires_grad=True), torch.ones(1)
    )
    with pytest.raises(RuntimeError, match=r"inputs \[1\] of a checkpointed part were changed in"):
        out.backward()


def test_an_identity_function_inside_passes():
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    x = torch.rand(2, requires_grad=True)
    (out,) = checkpoint(lambda x: (Identity.apply(x),), x)
    assert torch.equal(out, x)
    out.sum().backward()
    assert x.grad.tolist() == [1, 1]
