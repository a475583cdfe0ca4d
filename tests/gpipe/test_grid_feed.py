"""Who belongs to whom, and what each process is told of a batch."""

import pytest
import torch
import torch.distributed as dist

from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.gpipe.probe import Spec


def places(workers, replicas):
    grid = make_grid(workers, replicas)
    number = torch.tensor(10.0**grid.rank)
    sums = []
    for group in (grid.row, grid.column):
        total = number.clone()
        dist.all_reduce(total, group=group)
        sums.append(float(total))
    pairs = grid.pair_groups([(0, workers - 1)]) if workers > 1 else []
    return (grid.worker, grid.replica, [grid.peer(w) for w in range(workers)], *sums, len(pairs))


def test_rows_are_pipelines_and_columns_have_the_same_layers(gloo):
    assert gloo.run(places, 2, 2, size=4) == [
        (0, 0, [0, 1], 11.0, 101.0, 1),
        (1, 0, [0, 1], 11.0, 1010.0, 1),
        (0, 1, [2, 3], 1100.0, 101.0, 1),
        (1, 1, [2, 3], 1100.0, 1010.0, 1),
    ]
    assert [place[:2] for place in gloo.run(places, 1, 3, size=3)] == [(0, 0), (0, 1), (0, 2)]


def misfit():
    with pytest.raises(ValueError, match=r"workers: 3 x replicas: 2 = 6, must be the 2 processes"):
        make_grid(3, 2)
    return True


def test_a_grid_of_another_size_is_refused(gloo):
    assert gloo.run(misfit, size=2) == [True, True]


def told(batches, workers, replicas):
    grid = make_grid(workers, replicas)
    feed = Feed(grid, workers - 1)
    found = []
    for inputs, targets, total in batches:
        fed = feed((inputs, targets, total) if grid.worker == 0 else None)
        found.append((fed.inputs, fed.targets, fed.specs, fed.bare, fed.total, fed.rows))
    assert feed(None) is None
    dist.barrier()  # nobody leaves while others receive from it
    return found


def test_inputs_stay_with_the_first_and_targets_reach_the_last(gloo):
    x, y = torch.arange(12.0).view(4, 3), torch.arange(4)
    batches = [
        (x, y, 4),
        (x, y, 9),
        ((x, y > 1), (y, x.t().contiguous().t()), 4),
        ((x,), (y,), 4),
        (x[:0], y[:0], 3),
        (x[::2], y[1::2], 2),
    ]
    first, middle, last = gloo.run(told, batches, 3, 1, size=3)
    for number, (inputs, targets, total) in enumerate(batches):
        bare = isinstance(inputs, torch.Tensor)
        given = (inputs,) if bare else inputs
        for rank in (first, middle, last):
            assert rank[number][2:] == (
                tuple(map(Spec.of, given)),
                bare,
                total,
                len(given[0]),
            )
        assert middle[number][:2] == (None, None)
        assert first[number][1] is None
        assert last[number][0] is None
        torch.testing.assert_close(first[number][0], inputs, rtol=0, atol=0)
        torch.testing.assert_close(last[number][1], targets, rtol=0, atol=0)


def test_a_pipeline_of_one_keeps_both(gloo):
    x, y = torch.ones(2, 3), torch.zeros(2)
    for rank in gloo.run(told, [(x, y, 4)], 1, 2, size=2):
        assert torch.equal(rank[0][0], x)
        assert torch.equal(rank[0][1], y)
        assert rank[0][4] == 4
