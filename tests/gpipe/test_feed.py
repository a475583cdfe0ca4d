"""What each process is told of a batch, over changes of its look and to its end."""

import torch

from raykb.gpipe import feed as feeds
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid

BATCHES = [  # inputs, targets, samples in the whole batch
    (torch.ones(4, 3), torch.arange(4), 8),
    (torch.full((4, 3), 2.0), torch.arange(4) + 4, 8),
    (torch.ones(2, 3), torch.arange(2), 6),
    ((torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)), (torch.arange(2), torch.ones(2)), 2),
    (torch.ones(4, 3), torch.arange(4), 4),
]


def fed(workers):
    """Return what this process is told of all batches, and how often it is told of their look."""
    grid, heard = make_grid(workers), []
    feed, tell = Feed(grid, workers - 1), feeds.told
    feeds.told = lambda *args, **options: heard.append(tell(*args, **options)) or heard[-1]
    try:
        epoch = [*BATCHES, None]
        found = [feed(batch if grid.worker == 0 else None) for batch in epoch * 2]
    finally:
        feeds.told = tell
    return found, len(heard)


def test_the_first_stage_has_the_inputs_and_the_last_one_the_targets(gloo):
    for workers in (1, 2, 3):
        by_rank = [found for found, _ in gloo.run(fed, workers, size=workers)]
        for rank, told in enumerate(by_rank):
            assert [i for i, one in enumerate(told) if one is None] == [len(BATCHES), len(told) - 1]
            there_is = [one for one in told if one is not None]
            for one, (inputs, targets, total) in zip(there_is, BATCHES * 2, strict=True):
                bare = isinstance(inputs, torch.Tensor)
                specs = [(tuple(t.shape), t.dtype) for t in ((inputs,) if bare else inputs)]
                assert (one.bare, one.total, list(one.specs)) == (bare, total, specs)
                for value, given, there in (
                    (one.inputs, inputs, rank == 0),
                    (one.targets, targets, rank == workers - 1),
                ):
                    assert (value is not None) == there
                    if there:
                        torch.testing.assert_close(value, given, rtol=0, atol=0)


def test_a_look_is_told_when_it_changes(gloo):
    assert [count for _, count in gloo.run(fed, 2, size=2)] == [7, 7]
