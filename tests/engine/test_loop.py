"""The training loop: what it logs, saves and stops at, and that resuming changes nothing."""

import copy

import pytest
import torch
from torch import nn

from raykb.engine.loop import Training, fit
from raykb.engine.objective import CrossEntropy, objective_step
from raykb.engine.optim import cosine, scheduled, sgd, updater


def make_training(steps=12, dropout=0.5, lr=0.1, clip_norm=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 3))
    objective = CrossEntropy()
    optimizer = sgd(model, lr=lr, weight_decay=1e-3)
    scheduler = scheduled(optimizer, cosine(), steps=steps, warmup_steps=2)

    def batches(start):
        for number in range(start, steps):
            numbers = torch.Generator().manual_seed(number)
            yield torch.randn(6, 4, generator=numbers), torch.arange(6) % 3

    return Training(
        step=objective_step(objective, model),
        update=updater(model.parameters(), optimizer, scheduler, clip_norm=clip_norm),
        batches=batches,
        steps=steps,
        parts={"model": model, "optimizer": optimizer, "scheduler": scheduler},
    )


def no_log(step, figures):
    return


def test_a_run_saved_and_resumed_at_any_step_ends_as_one_that_was_not():
    whole = make_training()
    saved = []
    fit(whole, log=no_log, save=lambda state: saved.append(copy.deepcopy(state)), save_every=1)
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
    fit(make_training(steps=7), log=lambda step, figures: rows.append((step, figures)), log_every=3)
    assert [step for step, _ in rows] == [3, 6, 7]
    names = {"train/loss", "train/top1", "train/lr", "train/gradient_norm"}
    assert all(set(row) == names | {"time/step_s", "time/data_wait_s"} for _, row in rows)
    assert all(isinstance(value, float) for _, row in rows for value in row.values())


def test_the_logged_loss_is_the_mean_over_the_steps():
    single, triple = [], []
    fit(make_training(steps=3), log=lambda s, f: single.append(f["train/loss"]), log_every=1)
    fit(make_training(steps=3), log=lambda s, f: triple.append(f["train/loss"]), log_every=3)
    assert triple == [pytest.approx(sum(single) / 3)]


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
    training = make_training(lr=1e38, clip_norm=None, dropout=0.0)
    with pytest.raises(FloatingPointError, match=r"within the 2 steps up to \d+; lower the learn"):
        fit(training, log=no_log, log_every=2)
