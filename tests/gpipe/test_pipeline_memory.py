"""What stages keep in memory: during a step by the formulas, after it nothing."""

import gc

import pytest
import torch
from shared_pipelines import Rig, even, on_meta
from torch import nn

from raykb.gpipe.grid import make_grid
from raykb.gpipe.memory import SavedTensorMeter, micro_batch_bytes, predict
from raykb.gpipe.profile import profile_sizes

STAGES, MICRO_BATCHES, ROWS, WIDTH = 4, 8, 16, 32
MODES = [
    ("gpipe", "never"),
    ("1f1b", "never"),
    ("gpipe", "always"),
    ("1f1b", "always"),
    ("gpipe_fifo", "except_last"),
    ("1f1b", "except_last"),
    ("zero_bubble", "never"),
]


def deep():
    block = (nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.ELU())
    return nn.Sequential(*(layer for _ in range(STAGES) for layer in block))


def layers_of():
    return on_meta(lambda: nn.Sequential(*(type(m)(*arguments(m)) for m in deep())))


def arguments(layer):
    return (WIDTH, WIDTH) if isinstance(layer, nn.Linear) else ()


def mean(output, target, step):
    return {"loss": output.mean()}  # keeps no tensor


def peaks():
    """Return for each mode the bytes that are kept at most, recomputation included."""
    grid = make_grid(STAGES)
    x = torch.zeros(MICRO_BATCHES * ROWS, WIDTH)
    found = []
    for schedule, checkpoint in MODES:
        own = Rig(
            layers_of(),
            grid,
            schedule=schedule,
            checkpoint=checkpoint,
            micro_batches=MICRO_BATCHES,
            loss=mean,
        )
        own.step(x, x[:, 0])
        with SavedTensorMeter([*own.module.parameters(), x]) as meter:
            own.step(x, x[:, 0])
        found.append((meter.peak, meter.current))
    return found


def test_activations_are_those_of_the_formulas(gloo):
    sizes = profile_sizes(layers_of(), torch.zeros(ROWS, WIDTH, device="meta", requires_grad=True))
    by_rank = gloo.run(peaks, size=STAGES)
    for number, (schedule, checkpoint) in enumerate(MODES):
        expected = predict(
            sizes,
            even(len(sizes), STAGES),
            schedule=schedule,
            micro_batches=MICRO_BATCHES,
            checkpoint=checkpoint,
            state_tensors=0,
        )
        for stage, ((whole, entering), memory) in enumerate(
            zip(micro_batch_bytes(sizes, even(len(sizes), STAGES)), expected, strict=True)
        ):
            live = {"1f1b": STAGES - stage, "zero_bubble": STAGES}.get(schedule, MICRO_BATCHES)
            formula = live * whole if checkpoint == "never" else (live - 1) * entering + whole
            assert memory.activations == formula
            if stage == 0:  # the batch itself is not counted
                formula = live * (whole - entering) if checkpoint == "never" else whole - entering
            if (
                schedule == "zero_bubble"
            ):  # of those that wait for W, all behind the weights is gone
                formula -= stage * (whole - entering)
            peak, left = by_rank[stage][number]
            case = (schedule, checkpoint, stage, peak, formula)
            assert peak == pytest.approx(formula, rel=0.05), case
            assert left == 0, case


def data(rows):
    return torch.ones(rows, WIDTH), torch.zeros(rows)


def live():
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def counts():
    """Return the numbers of tensors after each of several steps, and of runs that are kept."""
    own = Rig(layers_of(), make_grid(2), micro_batches=4)
    tensors = []
    for number in range(12):
        own.step(*data(6), number)
        own.predict(*data(5))
        if number in (2, 3, 6, 11):  # to look costs more than all steps
            tensors.append(live())
    turns = []
    for _ in range(2):
        for rows in range(1, 21):
            own.step(*data(rows), rows)
        turns.append(live())
    return tensors, turns, len(own.pipeline._runs)


def test_steps_leave_no_tensors_and_batches_of_all_sizes_few(gloo):
    for tensors, turns, runs in gloo.run(counts, size=2):
        assert len(set(tensors)) == 1
        assert runs <= 8
        assert turns[0] == turns[1]
