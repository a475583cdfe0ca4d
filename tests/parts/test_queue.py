import pytest
import torch

from raykb.parts.queue import Queue


def test_it_begins_full_of_directions():
    rows = Queue(5, 3).rows
    assert rows.shape == (5, 3)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(("size", "counts"), [(5, [2, 2, 2, 1]), (4, [4, 4]), (3, [2, 7, 1])])
def test_it_holds_the_last_rows_that_were_pushed(size, counts):
    queue, pushed = Queue(size, 2), []
    pushed += queue.rows.tolist()
    for count in counts:
        rows = torch.arange(2.0 * count).reshape(count, 2) + 100.0 * len(pushed)
        queue.push(rows)
        pushed += rows.tolist()
        assert sorted(queue.rows.tolist()) == sorted(pushed[-size:])


def test_the_oldest_give_way_in_their_order_of_places():
    queue = Queue(3, 1)
    for value in (1.0, 2.0, 3.0, 4.0):
        queue.push(torch.tensor([[value]]))
    assert queue.rows.flatten().tolist() == [4.0, 2.0, 3.0]
    assert queue.oldest == 1


def test_what_was_seen_stays_and_gradients_stay_out():
    queue, rows = Queue(2, 2), torch.ones(1, 2, requires_grad=True)
    seen = queue.seen()
    queue.push(rows)
    assert not torch.equal(seen, queue.rows)
    assert not queue.rows.requires_grad


def test_without_places_or_width_it_is_refused():
    for size, width in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"size={size}, width={width}: must be at least 1"):
            Queue(size, width)
