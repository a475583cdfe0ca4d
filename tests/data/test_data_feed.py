"""Feeds: each brings the steps of a source, of whatever kind, and says what was broken."""

import logging
import pickle
import threading
import types

import pytest
import torch
from shared_series import Jitter, Series, joined, same, series, take

from raykb.data import feed as feeds
from raykb.data.feed import InPlace, Together, plain_batches
from raykb.data.loader import Loader
from raykb.data.order import ByShard, Endless, Shuffled
from raykb.data.source import Source
from raykb.engine.loop import Worker


def by_shard(count, batch_size, seed):
    return ByShard([count // 4, count - count // 4], batch_size=batch_size, seed=seed)


def ragged(count, batch_size, seed):
    return Shuffled(count, batch_size, seed, keep_last=True)


FEEDS = {
    "in place": InPlace,
    "loader, here": Loader,
    "loader, beside": lambda source, **how: Loader(source, workers=2, prefetch=3, **how),
}


@pytest.fixture(params=FEEDS)
def make(request):
    return FEEDS[request.param]


@pytest.mark.parametrize("order", [Endless, ragged, by_shard])
def test_what_is_seen_depends_on_the_step_alone(make, order):
    whole = take(InPlace(series(order=order)), 14)
    assert len({step["both"].sum().item() for step in whole}) == 14
    for start, by in ((0, "workers"), (5, "trainer")):  # the end of an epoch lies behind and before
        resumed = take(make(series(order=order, views_by=by)), 14 - start, start)
        assert same(resumed, whole[start:])


def test_two_ranks_see_what_one_sees(make):
    whole = take(InPlace(series(order=by_shard)), 7)
    parts = [take(make(series(order=by_shard)), 7, rank=rank, size=2) for rank in (0, 1)]
    assert same(joined(parts), whole)


def test_it_ends_where_it_is_told_to(make):
    feed = make(series())
    assert same(list(feed.batches(3, Worker(), 5)), take(InPlace(series()), 2, 3))
    assert list(feed.batches(5, Worker(), 5)) == []


def test_torchs_own_random_numbers_are_left_to_the_training(make):
    before = torch.get_rng_state()
    take(make(series()), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_that_are_none_are_refused_at_once(make):
    with pytest.raises(ValueError, match=r"batch_size: 6 .* do not divide by 4 workers"):
        make(series(order=by_shard)).batches(0, Worker(0, 4))


def test_a_feed_travels_also_while_it_runs(make):
    feed = make(series(broken=(0,)))
    running = feed.batches(0, Worker())
    next(running)
    assert same(take(pickle.loads(pickle.dumps(feed)), 3), take(InPlace(series()), 3))
    feed.close()
    feed.close()


def test_a_broken_row_is_told_once(make, caplog):
    told = []
    feed = make(series(broken=(4, 11)), tell=lambda *found: told.append(found))
    with caplog.at_level(logging.WARNING):
        take(feed, 30, rank=1, size=2)
        take(feed, 30, rank=0, size=2)
    assert told == [(1, "the sensor was off")] * 2
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == "the sensor was off; another one is seen in its place"


def test_a_feed_says_how_fast_it_is(monkeypatch):
    now = 100.0
    monkeypatch.setattr(feeds, "time", types.SimpleNamespace(monotonic=lambda: now))
    feed = Loader(series(broken=(4,)))
    take(feed, 4)
    assert feed.figures() == {"stream/rows_per_s": 0.0, "stream/broken_rows": 1.0}
    now += 2.0
    assert feed.figures() == {"stream/rows_per_s": 12.0, "stream/broken_rows": 1.0}
    assert InPlace(series()).figures() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout_s": 0}, "timeout_s: 0, must be above 0"),
        (
            {"workers": -1, "prefetch": 0},
            "workers: -1, must be at least 0; prefetch: 0, must be at least 1",
        ),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(series(), **arguments)


class Slow(Jitter):
    """A view that takes longer than the training waits."""

    def train(self, *given):
        threading.Event().wait(0.6)


def test_a_loader_that_brings_nothing_is_given_up():
    source = series()
    slow = Source(source.examples, source.order, Slow(), 0)
    with pytest.raises(TimeoutError, match=r"nothing for 0.2 s.*raise timeout_s"):
        take(Loader(slow, workers=1, timeout_s=0.2), 1)


def test_what_a_worker_raises_reaches_the_training(make):
    source = series()

    class Broken(Jitter):
        def train(self, *given):
            raise ArithmeticError("no such view")

    with pytest.raises(ArithmeticError, match="no such view"):
        take(make(Source(source.examples, source.order, Broken(), 0)), 1)


def test_the_test_form_of_all_rows_comes_once_in_their_order():
    rows, device = Series(20), torch.device("cpu")
    [whole] = plain_batches(rows, Jitter(), device)
    assert whole["both"].shape == (20, 1, 2, 9)
    parts = list(plain_batches(rows, Jitter(), device, batch_size=6))
    assert [len(part["both"]) for part in parts] == [6, 6, 6, 2]
    assert all(torch.equal(torch.cat([part[n] for part in parts]), whole[n]) for n in whole)
    for rank in range(3):
        [share] = plain_batches(rows, Jitter(), device, rank=rank, size=3)
        assert all(torch.equal(share[n], whole[n][rank::3]) for n in whole)


# ---------------------------------------------------------------------- several as one


class Named(Jitter):
    """The same views under other names."""

    def finish(self, arrays):
        return {f"other {name}": array for name, array in super().finish(arrays).items()}


def other():
    source = series(9, seed=8)
    return Source(source.examples, source.order, Named(), source.seed)


def test_feeds_together_bring_the_fields_of_each_step():
    together = take(Together(InPlace(series()), Loader(other(), workers=1)), 5, 2)
    for step, mine, theirs in zip(
        together, take(InPlace(series()), 5, 2), take(InPlace(other()), 5, 2), strict=True
    ):
        assert same([step], [mine | theirs])
        assert list(step) == [*mine, *theirs]


def test_feeds_together_end_together_and_share_figures_and_closing():
    loaders = [Loader(series()), Loader(other())]
    together = Together(*loaders)
    assert len(list(together.batches(1, Worker(), 3))) == 2
    assert together.figures() == loaders[1].figures()
    assert all(loader._running for loader in loaders)
    pickle.loads(pickle.dumps(together)).close()
    together.close()
    assert not any(loader._running for loader in loaders)


def test_a_field_of_two_feeds_is_refused():
    with pytest.raises(ValueError, match="both, ids, start: come from two feeds; must come from"):
        take(Together(InPlace(series()), InPlace(series())), 1)
