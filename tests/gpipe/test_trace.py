import itertools
import json
import math

import pytest

from raykb.gpipe.schedule import actions, bubble_utilisation, makespan
from raykb.gpipe.trace import Span, chrome_trace, efficiency, simulated


def moved(spans_by_worker, change):
    return [[change(span) for span in spans] for spans in spans_by_worker]


# ---------------------------------------------------------------------- simulation


@pytest.mark.parametrize("schedule", ["gpipe", "gpipe_fifo", "1f1b"])
@pytest.mark.parametrize("checkpoint", ["never", "always", "except_last"])
def test_a_simulated_step_takes_its_makespan(schedule, checkpoint):
    rows = simulated(schedule, [1.0] * 3, [2.0] * 3, micro_batches=8, checkpoint=checkpoint)
    took = max(span.end_s for row in rows for span in row)
    passes = 8 + 3 - 1
    exempt = 7 if schedule == "gpipe" else 0
    if checkpoint == "never":
        assert took == passes * 3.0
    if checkpoint == "always":
        assert took == passes * 4.0
    for span in itertools.chain(*rows):
        recomputes = checkpoint == "always" or (
            checkpoint == "except_last" and span.micro_batch != exempt
        )
        expected = 1.0 if span.kind == "F" else 2.0 + recomputes
        assert span.end_s - span.start_s == expected


def test_a_simulation_of_several_stages_a_worker():
    rows = simulated("interleaved", [1.0] * 4, [2.0] * 4, micro_batches=4, stages_per_worker=2)
    table = actions("interleaved", 4, 4, 2)
    assert [[span[:3] for span in row] for row in rows] == [[*map(tuple, row)] for row in table]
    assert max(span.end_s for row in rows for span in row) == makespan(table, [1.0] * 4, [2.0] * 4)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="checkpoint: 'ever', must be one of always"):
        simulated("gpipe", [1.0], [1.0], micro_batches=1, checkpoint="ever")


# ---------------------------------------------------------------------- Chrome's format


def test_a_trace_has_a_process_a_worker_and_a_row_a_stage():
    rows = simulated("interleaved", [0.001] * 4, [0.002] * 4, micro_batches=2, stages_per_worker=2)
    trace = json.loads(chrome_trace(moved(rows, lambda s: s._replace(start_s=s.start_s + 50.0))))
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    assert names == {(0, 0): "stage 0", (0, 2): "stage 2", (1, 1): "stage 1", (1, 3): "stage 3"}
    processes = [e for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert [(event["pid"], event["args"]["name"]) for event in processes] == [
        (0, "worker 0"),
        (1, "worker 1"),
    ]
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X"}


def test_actions_are_in_microseconds_from_the_first_one_on():
    spans = [[Span("F", 0, 3, 10.0, 10.5), Span("B", 0, 3, 10.75, 11.0)]]
    forward, backward = json.loads(chrome_trace(spans))["traceEvents"][-2:]
    assert (forward["name"], forward["cat"]) == ("F3", "forward")
    assert (forward["ts"], forward["dur"]) == (0.0, 5e5)
    assert (backward["name"], backward["cat"]) == ("B3", "backward")
    assert (backward["ts"], backward["dur"]) == (7.5e5, 2.5e5)
    assert backward["args"] == {"stage": 0, "micro_batch": 3}


def test_a_trace_of_nothing_is_one():
    assert json.loads(chrome_trace([]))["traceEvents"] == []


# ---------------------------------------------------------------------- where the time went


@pytest.mark.parametrize("schedule", ["gpipe", "gpipe_fifo", "1f1b"])
def test_of_balanced_stages_the_bubble_is_all_that_is_lost(schedule):
    found = efficiency(simulated(schedule, [1.0] * 4, [2.0] * 4, micro_batches=8), schedule)
    assert found == {
        "bubble": pytest.approx(8 / 11),
        "balance": 1.0,
        "runtime": 1.0,
        "utilisation": pytest.approx(8 / 11),
        "makespan_s": 33.0,
        "ideal_s": 33.0,
    }


def test_interleaving_is_judged_by_its_own_bubble():
    rows = simulated("interleaved", [1.0] * 8, [2.0] * 8, micro_batches=8, stages_per_worker=2)
    found = efficiency(rows, "interleaved")
    assert found["bubble"] == bubble_utilisation(4, 8, 2) == pytest.approx(16 / 19)
    assert found["utilisation"] == pytest.approx(found["bubble"])


def test_stages_of_one_worker_may_differ():
    rows = simulated(
        "interleaved",
        [1.0, 2.0, 2.0, 1.0],
        [2.0, 4.0, 4.0, 2.0],
        micro_batches=4,
        stages_per_worker=2,
    )
    assert efficiency(rows, "interleaved")["balance"] == 1.0


def test_uneven_stages_are_told_from_waiting():
    rows = simulated("1f1b", [1.0, 3.0], [2.0, 6.0], micro_batches=32)
    found = efficiency(rows, "1f1b")
    assert found["balance"] == pytest.approx((3 + 9) / 2 / 9)
    assert found["runtime"] == 1.0
    product = math.prod(found[factor] for factor in ("bubble", "balance", "runtime"))
    assert product == pytest.approx(found["utilisation"], rel=0.03)


def test_waiting_lowers_the_runtime_alone():
    rows = simulated("gpipe", [1.0] * 2, [2.0] * 2, micro_batches=4)
    # The clock runs twice as fast, but actions do not take longer: half of the time is waiting.
    slow = moved(
        rows,
        lambda span: span._replace(
            start_s=2 * span.start_s, end_s=2 * span.start_s + span.end_s - span.start_s
        ),
    )
    found, ideal = efficiency(slow, "gpipe"), efficiency(rows, "gpipe")
    assert found["ideal_s"] == ideal["ideal_s"] == 15.0
    assert found["makespan_s"] == 2 * 13 + 2  # the last action starts at 13 and takes 2
    assert found["runtime"] == pytest.approx(15 / 28)
    assert (found["bubble"], found["balance"]) == (ideal["bubble"], ideal["balance"])
    product = math.prod(found[factor] for factor in ("bubble", "balance", "runtime"))
    assert product == pytest.approx(found["utilisation"])


def test_one_slow_action_is_a_loss_at_run_time_and_no_slow_stage():
    rows = simulated("gpipe", [1.0], [2.0], micro_batches=4)
    last = rows[0][-1]
    rows[0][-1] = last._replace(end_s=last.end_s + 8.0)
    found = efficiency(rows, "gpipe")
    assert (found["ideal_s"], found["makespan_s"]) == (12.0, 20.0)
    assert found["runtime"] == pytest.approx(0.6)


def test_a_longer_step_may_be_what_counts():
    rows = simulated("gpipe", [1.0] * 2, [2.0] * 2, micro_batches=4)
    found = efficiency(rows, "gpipe", step_s=30.0)
    assert found["makespan_s"] == 30.0
    assert found["runtime"] == 0.5
    assert found["utilisation"] == pytest.approx(0.4)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("checkpoint", ["always", "except_last"])
def test_a_micro_batch_that_does_not_recompute_has_its_own_time(schedule, checkpoint):
    rows = simulated(schedule, [1.0] * 2, [2.0] * 2, micro_batches=4, checkpoint=checkpoint)
    found = efficiency(rows, schedule, checkpoint=checkpoint)
    assert found["runtime"] == 1.0
    assert found["balance"] == 1.0
    if checkpoint == "except_last":
        assert efficiency(rows, schedule)["runtime"] > 1.0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: [rows[0], rows[1][:-1]], "3 of worker 1, must be each of its 4 actions once"),
        (lambda rows: [rows[0] + rows[0][:1], rows[1]], r"5 of worker 0.*see F0 of stage 0"),
        (lambda rows: rows[::-1], "worker 0"),
        (lambda rows: rows[1:], "must be"),
        (lambda rows: [*rows, []], "of 3 workers, must be of 2"),
        (lambda rows: [[], []], "must be"),
        (lambda rows: [], "of 0 workers, must be of 1"),
    ],
)
def test_spans_that_are_no_whole_step_are_refused(change, problem):
    rows = simulated("gpipe", [1.0] * 2, [2.0] * 2, micro_batches=2)
    with pytest.raises(ValueError, match=problem):
        efficiency(change(rows), "gpipe")
