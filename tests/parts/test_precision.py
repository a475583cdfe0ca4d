import torch

from raykb.parts.precision import at_least_float32, in_float32


@in_float32
def product(first, second, scale=1, *, third=None):
    assert third is None or third.itemsize >= 4
    return first @ second.T * scale


def test_a_formula_keeps_its_precision_under_autocast_and_in_half_precision():
    first = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    second = first.flip(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = first @ second.T * 3.0
        found = product(first, second, 3.0)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(found, (first @ second.T) * 3.0)
    half = product(first.bfloat16(), second.bfloat16(), third=first.half())
    assert torch.equal(half, first.bfloat16().float() @ second.bfloat16().float().T)


def test_wider_numbers_and_whole_ones_stay():
    doubled, whole = torch.ones(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.int64)
    assert product(doubled, doubled).dtype == torch.float64
    assert product(whole, whole).dtype == torch.int64
    assert at_least_float32(doubled) is doubled
