import itertools

import pytest
import torch

from raykb.engine.seeding import generator
from raykb.parts.optimal_transport import cosine_cost, transport_distance, transport_plan


def present(*shape):
    return torch.ones(shape, dtype=torch.bool)


def vectors(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def test_equal_sets_are_moved_onto_themselves_at_no_cost():
    same = torch.eye(6, 16)[None]  # orthogonal, so that the plan is unique
    plan = transport_plan(cosine_cost(same, same), present(1, 6), present(1, 6))
    assert torch.allclose(plan[0], torch.eye(6) / 6, atol=1e-5)
    assert transport_distance(same, same, present(1, 6), present(1, 6)).abs() < 1e-4


def test_a_constant_cost_is_the_distance_and_all_pairs_are_alike():
    cost = torch.full((1, 4, 7), 0.3)
    plan = transport_plan(cost, present(1, 4), present(1, 7))
    assert torch.allclose(plan, torch.full((1, 4, 7), 1 / 28))
    assert (plan * cost).sum().item() == pytest.approx(0.3, rel=1e-5)


def test_from_one_word_the_distance_is_the_mean_cost():
    word, patches = vectors(1, 1, 8), vectors(1, 5, 8, seed=1)
    found = transport_distance(word, patches, present(1, 1), present(1, 5))
    assert found.item() == pytest.approx(cosine_cost(word, patches).mean().item(), rel=1e-5)


def test_a_plan_moves_all_of_each_word_and_of_each_patch():
    cost = cosine_cost(vectors(2, 5, 8), vectors(2, 9, 8, seed=1))
    plan = transport_plan(cost, present(2, 5), present(2, 9))
    assert torch.allclose(plan.sum(2), torch.full((2, 5), 1 / 5), atol=1e-6)
    assert torch.allclose(plan.sum(1), torch.full((2, 9), 1 / 9), atol=1e-3)


def test_it_is_no_dearer_than_any_assignment_and_near_the_best_one():
    cost = cosine_cost(vectors(1, 4, 8), vectors(1, 4, 8, seed=1))
    each = [cost[0][range(4), order].mean() for order in itertools.permutations(range(4))]
    plan = transport_plan(cost, present(1, 4), present(1, 4), iterations=500)
    assert (plan * cost).sum().item() == pytest.approx(min(each).item(), abs=1e-3)


def test_padding_changes_nothing():
    words, patches = vectors(1, 4, 8), vectors(1, 6, 8, seed=1)
    alone = transport_distance(words, patches, present(1, 4), present(1, 6))
    longer = torch.cat([words, vectors(1, 3, 8, seed=2)], 1)
    larger = torch.cat([patches, vectors(1, 2, 8, seed=3)], 1)
    there = torch.arange(7)[None] < 4, torch.arange(8)[None] < 6
    assert (transport_distance(longer, larger, *there) - alone).abs() < 1e-6
    assert (transport_plan(cosine_cost(longer, larger), *there)[:, 4:] == 0).all()


def test_a_text_without_words_is_at_no_distance_and_gets_no_gradient():
    words = vectors(1, 3, 8).requires_grad_()
    found = transport_distance(words, vectors(1, 4, 8), ~present(1, 3), present(1, 4))
    found.sum().backward()
    assert found.item() == 0
    assert (words.grad == 0).all()


def test_the_gradient_is_of_the_cost_alone():
    words, patches = vectors(1, 3, 8).requires_grad_(), vectors(1, 4, 8, seed=1)
    transport_distance(words, patches, present(1, 3), present(1, 4)).sum().backward()
    twin = words.detach().clone().requires_grad_()
    cost = cosine_cost(twin, patches)
    (transport_plan(cost.detach(), present(1, 3), present(1, 4)) * cost).sum().backward()
    assert torch.equal(words.grad, twin.grad)
