"""The training loop: what it logs, saves, evaluates and stops at; resuming changes nothing."""

import copy

import pytest
import torch
from torch import nn

from raykb.engine.loop import Evaluated, Training, fit
from raykb.engine.objective import CrossEntropy, LabelledBatch, Learner, Task, learning_step
from raykb.engine.optim import cosine, scheduled, sgd, updater


def make_training(steps=12, dropout=0.5, lr=0.1, clip_norm=1.0, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 3))
    learner = Learner(network, CrossEntropy(Task(network, steps, 3)))
    optimizer = sgd(learner, lr=lr, weight_decay=1e-3)
    scheduler = scheduled(optimizer, cosine(), steps=steps, warmup_steps=2)

    def batches(start):
        for number in range(start, steps):
            numbers = torch.Generator().manual_seed(number)
            yield LabelledBatch(torch.randn(6, 4, generator=numbers), torch.arange(6) % 3)

    return Training(
        step=learning_step(learner),
        update=updater(learner.parameters(), optimizer, scheduler, clip_norm=clip_norm),
        batches=batches,
        steps=steps,
        parts={"model": network, "optimizer": optimizer, "scheduler": scheduler},
        **options,
    )


def no_log(step, figures):
    return


def test_a_run_saved_and_resumed_at_any_step_ends_as_one_that_was_not():
    whole = make_training(save_every=1)
    saved = []
    fit(whole, log=no_log, save=lambda state: saved.append(copy.deepcopy(state)))
    wanted = whole.parts["model"].state_dict()
    assert [state["step"] for state in saved] == list(range(1, 13))
    for state in saved[:-1]:
        torch.manual_seed(12345)
        again = make_training()
        done = fit(again, start=again.restore(copy.deepcopy(state)), log=no_log)
        assert done == 12
        for name, value in again.parts["model"].state_dict().items():
            assert torch.equal(value, wanted[name]), (state["step"], name)


def test_log_gets_means_with_times_every_so_many_steps_and_at_the_end():
    rows = []
    fit(make_training(steps=7, log_every=3), log=lambda step, row: rows.append((step, row)))
    assert [step for step, _ in rows] == [3, 6, 7]
    names = {"train/loss", "train/top1", "train/lr", "train/gradient_norm"}
    assert all(set(row) == names | {"time/step_s", "time/data_wait_s"} for _, row in rows)
    assert all(isinstance(value, float) for _, row in rows for value in row.values())


def test_the_logged_loss_is_the_mean_over_the_steps():
    single, triple = [], []
    for every, losses in ((1, single), (3, triple)):
        made = make_training(steps=3, log_every=every)
        fit(made, log=lambda step, row, losses=losses: losses.append(row["train/loss"]))
    assert triple == [pytest.approx(sum(single) / 3)]


def test_a_figure_that_not_all_steps_have_is_the_mean_of_those_that_have_it():
    made, rows = make_training(steps=4, log_every=4), []
    made.update = lambda step: {"late": float(step)} if step >= 2 else {}
    fit(made, log=lambda step, row: rows.append(row["train/late"]))
    assert rows == [2.5]


def test_stop_saves_where_it_stops():
    saved, asked = [], []
    done = fit(
        make_training(),
        log=no_log,
        save=saved.append,
        stop=lambda: asked.append(1) or len(asked) == 4,
    )
    assert done == 4
    assert [state["step"] for state in saved] == [4]


def test_a_loss_that_is_not_finite_is_an_error_with_the_step():
    training = make_training(lr=1e38, clip_norm=None, dropout=0.0, log_every=2)
    with pytest.raises(FloatingPointError, match=r"within the 2 steps up to \d+; lower the learn"):
        fit(training, log=no_log)


@pytest.mark.parametrize(("every", "wanted"), [(0, []), (3, [3, 6, 7]), (7, [7]), (9, [7])])
def test_evaluations_on_the_way_are_logged_every_so_many_steps_and_at_the_end(every, wanted):
    asked, rows = [], []

    def evaluate(split):
        asked.append(split)
        return Evaluated({f"{split}/top1": 0.5}, {"confusion": [[1]]})

    made = make_training(steps=7, log_every=100, evaluate=evaluate, evaluate_every=every)
    fit(made, log=lambda step, row: rows.append((step, row)))
    assert [(step, row) for step, row in rows if "valid/top1" in row] == [
        (step, {"valid/top1": 0.5}) for step in wanted
    ]
    assert asked == ["valid"] * len(wanted)


def test_checkpoints_are_saved_every_so_many_steps_and_none_by_default():
    saved = []
    fit(make_training(steps=7, save_every=3), log=no_log, save=saved.append)
    assert [state["step"] for state in saved] == [3, 6]
    fit(make_training(steps=7), log=no_log, save=saved.append)
    assert len(saved) == 2
