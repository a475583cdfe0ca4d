"""A source: what a step sees, of anything, whoever makes the views."""

import pickle

import numpy as np
import pytest
import torch
from shared_series import Jitter, Series, joined, same, series

from raykb.data.feed import InPlace
from raykb.data.order import ByShard, Endless, Shuffled
from raykb.data.source import Selected, Source
from raykb.engine.loop import Worker

CPU = torch.device("cpu")


def finished(source, steps, rank=0, size=1):
    return [source.finish(source.read(step, rank, size), CPU) for step in steps]


@pytest.mark.parametrize("order", [Endless, Shuffled])
def test_views_are_the_same_whoever_makes_them(order):
    workers, trainer = (series(order=order, views_by=by) for by in ("workers", "trainer"))
    assert same(finished(workers, range(9)), finished(trainer, range(9)))
    assert workers.read(0).arrays.keys() == {"both", "start", "ids"}
    assert trainer.read(0).arrays.keys() == {"curves", "times"}


def test_ranks_share_what_one_sees_under_its_own_epochs():
    source = series(5)  # 6 rows of a step, which reach over an epoch's end
    whole = finished(source, range(5))
    parts = [finished(source, range(5), rank, 2) for rank in range(2)]
    for step, expected in enumerate(whole):
        for rank in range(2):
            assert same([parts[rank][step]], [{n: a[rank::2] for n, a in expected.items()}])


def test_a_step_of_several_epochs_sees_each_row_as_its_epoch_does():
    source, view = series(4, batch_size=13), Jitter()
    for step in range(3):
        rows, epochs = source.order.at(step)
        assert len(set(epochs.tolist())) > 2
        [fields] = finished(source, [step])
        for place, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
            arrays, ids, _ = source.examples.read(np.array([row]))
            alone = {name: torch.from_numpy(array) for name, array in arrays.items()}
            alone = view.finish(view.train(alone, ids, source.seed, int(epoch)))
            assert same([alone], [{n: array[place : place + 1] for n, array in fields.items()}])


def test_a_rank_without_a_row_sees_fields_of_none():
    source = series(7, order=lambda *of: Shuffled(*of, keep_last=True))
    assert len(source.order.at(1).rows) == 1
    for by in ("workers", "trainer"):
        alone = Source(source.examples, source.order, source.view, source.seed, by)
        parts = [finished(alone, [1], rank, 2) for rank in range(2)]
        assert parts[1][0]["both"].shape == (0, 2, 2, 9)
        assert same(joined(parts), finished(source, [1]))


def test_bytes_are_those_of_the_largest_step_by_a_row_of_any():
    source = series(20, order=lambda *of: Shuffled(*of, keep_last=True))
    for by, row in (("workers", 4 * 9 * 4 + 8 + 8), ("trainer", 2 * 9 * 4 + 9 * 8)):
        alone = Source(source.examples, source.order, source.view, source.seed, by)
        for step in (0, 3):  # of 6 rows and of 2
            assert alone.step_bytes(step) == alone.read(0).nbytes == 6 * (row + 8 + 8)
            assert alone.step_bytes(step, 1, 4) == 2 * (row + 8 + 8)


def test_problems_stay_with_their_rows():
    piece = series(6, broken=(2,)).read(0)
    assert [bool(problem) for problem in piece.problems] == (piece.ids == 998).tolist()


def test_it_travels():
    source = series(views_by="trainer")
    there = pickle.loads(pickle.dumps(source))
    assert same(finished(there, range(4)), finished(source, range(4)))
    assert len(pickle.dumps(source)) < 2000


def test_a_selection_reads_from_where_the_others_are():
    rows = np.array([7, 3, 19, 4])
    some = Selected(Series(20), rows)
    assert (len(some), some.ids.tolist()) == (4, [993, 997, 981, 996])
    found, ids, _ = some.read(np.array([2, 0]))
    assert ids.tolist() == [981, 993]
    assert np.array_equal(found["curves"], Series(20).read(rows[[2, 0]]).arrays["curves"])
    assert some.subset(np.array([3, 1])).ids.tolist() == [996, 997]


def test_others_who_make_views_are_refused():
    with pytest.raises(ValueError, match="views_by: 'gpu', must be 'workers' or 'trainer'"):
        series(views_by="gpu")


class Counting:
    """Examples that note how often they are asked."""

    def __init__(self):
        self.examples, self.asked = Series(20), []

    def read(self, rows):
        self.asked.append(len(rows))
        return self.examples.read(rows)


def test_a_trial_reads_one_row():
    examples = Counting()
    Source(examples, Endless(20, 6, 0), Jitter(), 0).step_bytes(3)
    assert examples.asked == [1]


def test_shards_of_anything_are_an_order_of_it():
    order = ByShard([12, 8], batch_size=6, seed=0)
    source = Source(Series(20), order, Jitter(), 0)
    batches = InPlace(source).batches(0, Worker())
    seen = torch.cat([next(batches)["ids"] for _ in range(3)])
    assert len(seen.unique()) == 18
