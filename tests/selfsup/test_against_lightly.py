"""Losses are those of lightly (Susmelj et al., MIT licence), values and gradients.

Where the two mean something else, the test says what is put right before they are compared.
"""

import pytest
import torch
from lightly.loss.barlow_twins_loss import BarlowTwinsLoss
from lightly.loss.dcl_loss import DCLLoss, DCLWLoss
from lightly.loss.dino_loss import DINOLoss
from lightly.loss.negative_cosine_similarity import NegativeCosineSimilarity
from lightly.loss.ntx_ent_loss import NTXentLoss
from lightly.loss.swav_loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as their_sinkhorn
from lightly.loss.vicreg_loss import VICRegLoss
from lightly.models.modules.nn_memory_bank import NNMemoryBankModule
from lightly.utils.lars import LARS as TheirLARS
from shared_views import drawn
from torch.nn import functional as F

from raykb.engine.lars import LARS
from raykb.selfsup.barlow_twins import barlow_twins_loss
from raykb.selfsup.dcl import dcl_loss, dclw_loss
from raykb.selfsup.dino import centred_shares, dino_loss
from raykb.selfsup.moco import queue_contrast
from raykb.selfsup.nnclr import nearest_neighbours
from raykb.selfsup.simsiam import negative_cosine
from raykb.selfsup.swav import sinkhorn, swapped_prediction
from raykb.selfsup.vicreg import vicreg_parts

SHAPES = [(2, 3), (7, 5), (16, 32)]


def same(ours, theirs, *rows):
    """Check that two losses of rows are equal, and their gradients."""
    rows = [own.requires_grad_() for own in rows]
    mine, other = ours(*rows), theirs(*rows)
    assert mine.item() == pytest.approx(other.item(), abs=1e-6, rel=1e-9)
    gradients = (torch.autograd.grad(loss, rows, allow_unused=True) for loss in (mine, other))
    for own, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-7, atol=1e-8)


def pair(count, width):
    return drawn(count, width), drawn(count, width, seed=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_dcl(shape, temperature):
    same(lambda *rows: dcl_loss(*rows, temperature), DCLLoss(temperature), *pair(*shape))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # lightly's, at each step
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("temperature", "sigma"), [(0.1, 0.5), (0.5, 0.2)])
def test_dclw(shape, temperature, sigma):
    theirs = DCLWLoss(temperature, sigma)
    same(lambda *rows: dclw_loss(*rows, temperature, sigma), theirs, *pair(*shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [0.005, 1.0])
def test_barlow_twins(shape, weight):
    same(lambda *rows: barlow_twins_loss(*rows, weight), BarlowTwinsLoss(weight), *pair(*shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg(shape):
    def ours(first, second):
        parts = vicreg_parts(first, second)
        return 2.0 * parts.invariance + 3.0 * parts.variance + 5.0 * parts.covariance

    same(ours, VICRegLoss(2.0, 3.0, 5.0), *(0.3 * rows for rows in pair(*shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_simsiam(shape):
    theirs = NegativeCosineSimilarity()
    same(negative_cosine, lambda p, z: theirs(p, z.detach()), *pair(*shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_moco(shape):
    theirs = NTXentLoss(0.2, memory_bank_size=(6, shape[1]))
    theirs.memory_bank.bank = F.normalize(drawn(6, shape[1], seed=2), dim=1)
    bank = theirs.memory_bank.bank.clone()
    queries, keys = pair(*shape)
    same(
        lambda rows: queue_contrast(rows, keys, bank, 0.2), lambda rows: theirs(rows, keys), queries
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_neighbours_of_nnclr(shape):
    bank = NNMemoryBankModule(size=(6, shape[1]))
    bank.bank = F.normalize(drawn(6, shape[1], seed=2), dim=1)
    rows = drawn(*shape)
    assert torch.equal(nearest_neighbours(rows, bank.bank), bank(rows))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("smoothness", "iterations"), [(0.05, 3), (0.5, 1)])
def test_the_codes_of_swav(shape, smoothness, iterations):
    similarity = drawn(*shape).tanh()
    ours = sinkhorn(similarity, smoothness, iterations)
    torch.testing.assert_close(ours, their_sinkhorn(similarity, iterations, smoothness))


@pytest.mark.parametrize("shape", SHAPES)
def test_swav(shape):
    def ours(*rows):
        codes = [sinkhorn(own, 0.1, 2) for own in rows[:2]]
        losses = [
            swapped_prediction(own, code, 0.3)
            for large, code in enumerate(codes)
            for view, own in enumerate(rows)
            if view != large
        ]
        return torch.stack(losses).mean()

    theirs = SwaVLoss(0.3, sinkhorn_iterations=2, sinkhorn_epsilon=0.1)
    views = [drawn(*shape, seed=seed).tanh() for seed in range(4)]
    same(ours, lambda *rows: theirs(list(rows[:2]), list(rows[2:])), *views)


@pytest.mark.parametrize("shape", SHAPES)
def test_dino_and_its_centre(shape):
    center = drawn(shape[1], seed=9)
    theirs = DINOLoss(shape[1], teacher_temp=0.3, student_temp=0.5, center_momentum=0.7).double()
    theirs.center = center.clone()[None, None]
    teacher = [drawn(*shape, seed=seed) for seed in (4, 5)]

    def ours(*rows):
        return dino_loss(rows, [centred_shares(own, center, 0.3) for own in teacher], 0.5)

    views = [drawn(*shape, seed=seed) for seed in range(4)]
    same(ours, lambda *rows: theirs(teacher, list(rows)), *views)
    torch.testing.assert_close(theirs.center[0, 0], center.lerp(torch.cat(teacher).mean(0), 0.3))


def test_lars():
    start, ours, theirs = drawn(4, 3), LARS, TheirLARS
    ends = []
    for kind, trust in ((ours, "trust"), (theirs, "trust_coefficient")):
        weights = torch.nn.Parameter(start.clone())
        optimizer = kind([weights], lr=0.7, momentum=0.8, weight_decay=0.1, **{trust: 0.05})
        for seed in range(1, 4):
            weights.grad = drawn(4, 3, seed=seed)
            optimizer.step()
        ends.append(weights.data)
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)
