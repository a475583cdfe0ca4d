"""Orders: each row at most once an epoch, whatever the ranks, and any step without the others."""

import pickle

import numpy as np
import pytest

from raykb.data.order import ByShard, Endless, Shuffled

COUNTS = [20, 3, 17, 10]


def rows(order, steps, **place):
    return [order.at(step, **place).rows.tolist() for step in steps]


ORDERS = {
    "shuffled": lambda seed=0: Shuffled(50, 8, seed),
    "shuffled, last kept": lambda seed=0: Shuffled(50, 8, seed, keep_last=True),
    "endless": lambda seed=0: Endless(50, 8, seed),
    "by shard": lambda seed=0: ByShard(COUNTS, batch_size=8, seed=seed),
    "by shard, mixed": lambda seed=0: ByShard(COUNTS, batch_size=8, seed=seed, mix_shards=3),
}


@pytest.fixture(params=ORDERS)
def make(request):
    return ORDERS[request.param]


# ---------------------------------------------------------------------- every order


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_what_one_sees(make, size):
    order = make()
    for step in range(20):
        whole = order.at(step)
        parts = [order.at(step, rank, size) for rank in range(size)]
        seen = [pair for part in parts for pair in zip(*map(np.ndarray.tolist, part), strict=True)]
        assert sorted(seen) == sorted(zip(*map(np.ndarray.tolist, whole), strict=True))
        assert len(seen) == order.batch(step) <= order.batch(0)
        assert max(len(part.rows) for part in parts) == -(-order.batch(step) // size)


def test_no_epoch_has_a_row_twice(make):
    order = make()
    seen = [
        (epoch, row)
        for step in range(4 * order.steps_per_epoch)
        for row, epoch in zip(*map(np.ndarray.tolist, order.at(step)), strict=True)
    ]
    assert len(set(seen)) == len(seen)
    assert {row for _, row in seen} == set(range(50))


def test_a_step_is_the_same_again_in_any_order_and_after_a_journey(make):
    order = make()
    first = rows(order, range(20))
    assert len({tuple(step) for step in first}) == 20
    for again in (order, make(), pickle.loads(pickle.dumps(order))):
        for step in (19, 3, 7, 0):
            assert again.at(step).rows.tolist() == first[step]
    assert rows(make(1), range(4)) != first[:4]


def test_what_a_rank_does_with_its_rows_changes_no_step(make):
    order = make()
    rows, epochs = order.at(3)
    assert epochs.dtype == rows.dtype == np.int64
    expected = rows.tolist()
    if rows.flags.writeable:
        rows[:] = 0
    assert order.at(3).rows.tolist() == expected


# ---------------------------------------------------------------------- each


@pytest.mark.parametrize(
    ("count", "keep", "batches"),
    [(50, False, [8] * 6), (50, True, [8] * 6 + [2]), (48, True, [8] * 6), (5, False, [5])],
)
def test_an_epoch_is_cut_into_batches(count, keep, batches):
    order = Shuffled(count, 8, 0, keep_last=keep)
    assert order.steps_per_epoch == len(batches)
    for step in range(2 * len(batches)):
        epoch, number = divmod(step, len(batches))
        found = order.at(step)
        assert len(found.rows) == order.batch(step) == batches[number]
        assert set(found.epochs) == {epoch}


@pytest.mark.parametrize(("count", "size"), [(5, 2), (5, 5), (5, 13), (40, 64)])
def test_every_endless_epoch_has_every_row_once(count, size):
    steps = [Endless(count, size, 0).at(step) for step in range(2 * count)]
    found, epochs = (np.concatenate(part) for part in zip(*steps, strict=True))
    assert (np.diff(epochs) >= 0).all()
    for epoch in range(2 * size):
        assert sorted(found[epochs == epoch]) == list(range(count))


def test_endless_ranks_take_every_nth_row():
    order = Endless(5, 6, 3)
    for step in range(4):
        whole = order.at(step)
        for rank in range(2):
            part = order.at(step, rank, 2)
            assert np.array_equal(part.rows, whole.rows[rank::2])
            assert np.array_equal(part.epochs, whole.epochs[rank::2])


def test_ranks_of_shards_take_slices():
    order = ByShard(COUNTS, batch_size=8, seed=1)
    assert (order.count, order.steps_per_epoch) == (50, 6)
    parts = [order.at(3, rank, 4).rows for rank in range(4)]
    assert np.array_equal(np.concatenate(parts), order.at(3).rows)


def test_shards_are_read_one_after_the_other_or_mixed():
    apart, mixed = (ByShard([100] * 6, batch_size=50, seed=0, mix_shards=mix) for mix in (1, 3))
    assert {len(set(apart.at(step).rows // 100)) for step in range(12)} == {1}
    assert {len(set(mixed.at(step).rows // 100)) for step in range(12)} == {3}


def test_a_step_of_millions_of_rows_is_found_without_those_before_it():
    order = ByShard([10_000] * 500, batch_size=448, seed=0)
    assert len(set(order.at(10**9).rows.tolist())) == 448
    assert len(order._rows) <= 2  # pools whose rows were permuted
    assert len(pickle.dumps(order)) < 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 rows of each step; must be from 1 to the 5"),
        ({"batch_size": 6}, "batch_size: 6"),
        ({"batch_size": 2, "mix_shards": 0}, "mix_shards: 0; must be at least 1"),
    ],
)
def test_wrong_orders_by_shard_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ByShard([5], seed=0, **arguments)


@pytest.mark.parametrize("order", [Shuffled, Endless])
def test_wrong_orders_are_refused(order):
    with pytest.raises(ValueError, match="count: 0, must be at least 1; batch_size: 0, must be at"):
        order(0, 0, 0)


@pytest.mark.parametrize(
    ("rank", "size", "message"),
    [
        (0, 3, "batch_size: 8 .* do not divide by 3 workers"),
        (2, 2, r"rank: 2; must be in 0\.\.1"),
    ],
)
def test_ranks_that_are_none_are_refused(rank, size, message):
    with pytest.raises(ValueError, match=message):
        ByShard(COUNTS, batch_size=8, seed=0).at(0, rank, size)
