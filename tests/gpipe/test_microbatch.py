"""Mini-batches in pieces and together again."""

import pytest
import torch

from raykb.gpipe.microbatch import check, gather, scatter


@pytest.mark.parametrize("value", [torch.zeros(2), (torch.zeros(2),), (torch.zeros(2),) * 3])
def test_tensors_and_flat_tuples_of_them_are_accepted(value):
    check(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (42, "int"),
        ("text", "str"),
        (None, "NoneType"),
        ([torch.zeros(2)], "list"),
        ((torch.zeros(2), 42), "a tuple with int"),
        (((torch.zeros(2),),), "a tuple with tuple"),
        ((), "a tuple with nothing"),
    ],
)
def test_anything_else_is_refused_with_its_kind(value, kind):
    with pytest.raises(TypeError, match=f"^output: {kind}, must be a tensor or a flat tuple"):
        check(value, "output")


@pytest.mark.parametrize(
    ("samples", "chunks", "sizes"),
    [
        (8, 4, [2, 2, 2, 2]),
        (7, 4, [2, 2, 2, 1]),
        (3, 4, [1, 1, 1]),
        (6, 4, [2, 2, 2]),
        (5, 1, [5]),
    ],
)
def test_samples_are_cut_as_tensor_chunk_cuts_them_and_come_together_again(samples, chunks, sizes):
    tensor, other = torch.randn(samples, 3), torch.arange(samples)
    pieces = scatter(tensor, chunks)
    assert [len(piece) for piece in pieces] == sizes
    assert torch.equal(gather(pieces), tensor)
    pairs = scatter((tensor, other), chunks)
    assert [len(first) for first, _ in pairs] == sizes
    assert all(torch.equal(a, b) for a, b in zip(gather(pairs), (tensor, other), strict=True))


def test_a_tuple_of_one_stays_a_tuple():
    (piece,) = scatter((torch.ones(2),), 1)
    assert isinstance(piece, tuple)
    assert isinstance(gather([piece]), tuple)


def test_tensors_of_different_batches_are_refused():
    with pytest.raises(ValueError, match=r"tensors of \[4, 2\] samples give \[4, 2\] micro"):
        scatter((torch.zeros(4), torch.zeros(2)), 4)
