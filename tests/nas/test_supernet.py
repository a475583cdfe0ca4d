import pytest
import torch
from shared_search import SPACE, WITHOUT_NONE, chosen

from raykb.engine.seeding import generator
from raykb.nas.bilevel import frozen
from raykb.nas.cell import Candidates
from raykb.nas.genotype import CELLS, PLACES, SearchSpace
from raykb.nas.samplers import SAMPLERS
from raykb.nas.scnas import GOLDEN, network
from raykb.nas.supernet import (
    Architecture,
    choices_of_draw,
    choices_of_genotype,
    cost_table,
    draw_cells,
    expected_cost,
)

CPU = torch.device("cpu")


def draw_at(name, space, seed=0, alpha=None):
    logits = torch.zeros(len(CELLS), len(PLACES), len(space.operations)) if alpha is None else alpha
    return draw_cells(SAMPLERS[name](space), logits, space, generator(seed))


def alpha_step(net, name, space=SPACE, seed=0):
    """Run what a step of the architecture runs; return loss and gates."""
    draw = draw_at(name, space, seed)
    gates = draw.gates.clone().requires_grad_(SAMPLERS[name].needs_gates)
    net.choices = choices_of_draw(draw, gates, device=CPU, watch=True)
    sides = [8] * net.supernet.dims
    with frozen(net):
        return net(torch.randn(1, 1, *sides, generator=generator(1))).square().mean(), gates


def executed(net):
    """Count runs of candidate operations by name of the cell."""
    counts = dict.fromkeys(net.supernet.cells, 0)
    for cell_name, cell in net.supernet.cells.items():
        for candidates in cell.edges.values():
            for operation in candidates.values():

                def count(*_, name=cell_name):
                    counts[name] += 1

                operation.register_forward_hook(count)
    return counts


@pytest.mark.parametrize(
    ("name", "space", "runs"),
    [
        ("softmax", SPACE, 14 * 6),
        ("straight_through_all", SPACE, 14 * 6),
        ("straight_through_executed", WITHOUT_NONE, 14),
        ("two_path", SPACE, 28),
        ("score_function", SPACE, 14),
    ],
)
def test_a_step_of_the_architecture_runs_so_many_operations_a_cell(name, space, runs):
    net = chosen(space)
    counts = executed(net)
    alpha_step(net, name, space)
    assert set(counts.values()) == {runs}


@pytest.mark.parametrize("name", ["two_path", "straight_through_all", "score_function"])
def test_a_step_of_the_weights_runs_one_operation_an_edge_and_moves_no_other(name):
    net = chosen()
    counts = executed(net)
    draw = draw_at(name, SPACE)
    net.choices = choices_of_draw(draw, None, device=CPU, watch=False)
    net(torch.randn(1, 1, 8, 8)).square().mean().backward()
    assert set(counts.values()) == {14}
    cells = [(m, c) for c, kind in enumerate(CELLS) for m in cells_of(net, kind)]
    touched = 0
    for cell, c in cells:
        for e, place in enumerate(PLACES):
            drawn = SPACE.operations[draw.drawn[c, e, 0]]
            for operation, module in cell.edges[place.name].items():
                gradients = [p.grad is not None for p in module.parameters()]
                assert not any(gradients) or operation == drawn
                touched += any(gradients)
    assert touched > 10


def cells_of(net, kind):
    return [cell for cell in net.supernet.cells.values() if cell.plan.kind == kind]


def test_the_executed_network_is_discrete():
    """What is watched, and what gates multiply, changes no bit of the output."""
    net = chosen()
    images = torch.randn(1, 1, 8, 8)
    for name in ("two_path", "straight_through_all"):
        draw = draw_at(name, SPACE)
        net.choices = choices_of_draw(draw, draw.gates, device=CPU, watch=True)
        watched = net(images)
        net.choices = choices_of_draw(draw, None, device=CPU, watch=False)
        assert torch.equal(watched, net(images))


def test_the_gradient_of_a_gate_is_what_changing_it_changes():
    """G by autograd, with watched operations outside of the graph, against finite differences."""
    net = chosen().double()
    images = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    draw = draw_at("straight_through_all", SPACE)

    def loss(gates):
        net.choices = choices_of_draw(draw, gates, device=CPU, watch=True)
        return net(images).square().mean()

    gates = draw.gates.double().requires_grad_()
    (g,) = torch.autograd.grad(loss(gates), gates)
    checked = [*g.abs().flatten().topk(5).indices.tolist(), 3, 111]
    for index in checked:
        step = torch.zeros(gates.numel(), dtype=torch.float64)
        step[index] = 1e-5
        step = step.view_as(gates)
        with torch.no_grad():
            slope = (loss(gates + step) - loss(gates - step)) / 2e-5
        torch.testing.assert_close(g.flatten()[index], slope, rtol=1e-4, atol=1e-8)


def test_a_derived_network_takes_its_weights_out_of_the_supernet():
    net = chosen(layers=4, width=2)
    derived = network(GOLDEN, 2, 4, 2, 1, dims=2)
    weights = net.supernet.state_dict()
    derived.load_state_dict({name: weights[name] for name in derived.state_dict()})
    net.choices = choices_of_genotype(GOLDEN, SPACE)
    images = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(net(images), derived(images))


# ---------------------------------------------------------------------------- memory


def saved_bytes(net, name, seed):
    """Return bytes that autograd keeps at the end of the forward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), storage)  # held: no address is reused
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alpha_step(net, name, seed=seed)
    return sum(size for pointer, (size, _) in storages.items() if pointer not in parameters)


def test_two_paths_keep_less_than_half_of_what_the_mixture_keeps():
    net = chosen(width=2, dims=3, bridge=False)
    mixed = saved_bytes(net, "softmax", 0)
    sampled = [saved_bytes(net, "two_path", seed) for seed in range(4)]
    assert sum(sampled) / len(sampled) <= 0.45 * mixed
    assert max(sampled) < mixed


# ---------------------------------------------------------------------------- draws


def alpha_of(favourite, strength=50.0, space=SPACE):
    alpha = torch.zeros(len(CELLS), len(PLACES), len(space.operations))
    alpha[..., space.operations.index(favourite)] = strength
    return alpha


def test_a_cell_whose_output_is_zero_is_drawn_again(monkeypatch):
    space = SearchSpace(("none", "conv_3"))
    alpha = alpha_of("none", 2.5, space)  # 92 of 100 operations: most draws have a dead cell
    sampler, tries = SAMPLERS["score_function"](space), []
    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", lambda *given: tries.append(draw(*given)) or tries[-1])
    for seed in range(5):
        found = draw_cells(sampler, alpha, space, generator(seed))
        assert found is tries[-1]
        for cell in found.drawn.tolist():
            live = {"s0", "s1"}
            for place, (k,) in zip(PLACES, cell, strict=True):
                live |= {place.node} if k and place.source in live else set()
            assert live & {"n1", "n2", "n3"}
    assert len(tries) > 5


def test_a_space_that_only_none_is_left_of_is_an_error():
    with pytest.raises(RuntimeError, match="'none' has won nearly everywhere; lower"):
        draw_at("two_path", SPACE, alpha=alpha_of("none"))


@pytest.mark.parametrize("name", ["two_path", "straight_through_all", "score_function", "softmax"])
def test_draws_are_a_function_of_the_generator(name):
    first, again, other = (draw_at(name, SPACE, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))
    assert name == "softmax" or not torch.equal(first.drawn, other.drawn)


# ---------------------------------------------------------------------------- costs


def test_the_cost_of_a_network_is_a_share_of_the_dearest():
    with torch.device("meta"):
        net = network(SPACE, 4, 4, 2, 1)
    table = cost_table(SPACE, net)
    assert float(expected_cost(alpha_of("conv_3", 1e3), table)) == pytest.approx(1, abs=1e-6)
    assert float(expected_cost(alpha_of("none", 1e3), table)) == 0
    uniform = float(expected_cost(Architecture(SPACE).alpha.detach(), table))
    assert 0.5 < uniform < 0.6  # half of the operations are convolutions; pools cost little


def test_costs_count_multiply_adds_of_all_cells_of_a_type():
    with torch.device("meta"):
        net = network(SPACE, 2, 4, 2, 1)
    table = cost_table(SPACE, net)
    conv = SPACE.operations.index("conv_3")
    shares = {kind: float(table[c, :, conv].sum()) for c, kind in enumerate(CELLS)}
    # 27 C^2 / 8^level at 14 places: channels 4 and 8 at levels 1 and 2, 2 at level 0
    work = {
        "reduction": 16 / 8 + 64 / 64,
        "encoder_normal": 16 / 8 + 64 / 64 + 64 / 64,
        "decoder_normal": 64 / 64 + 16 / 8,
        "expansion": 16 / 8 + 4,
    }
    total = sum(work.values())
    assert shares == pytest.approx({kind: value / total for kind, value in work.items()})
    assert sum(shares.values()) == pytest.approx(1)


def test_entropies_are_those_of_the_chances():
    architecture = Architecture(SPACE)
    assert architecture.alpha.device == CPU
    assert list(architecture.entropies().values()) == pytest.approx([1.791759] * 4)
    architecture.alpha.data = alpha_of("conv_3")
    assert list(architecture.entropies().values()) == pytest.approx([0] * 4, abs=1e-6)


def test_no_edge_is_no_tensor():
    edge = Candidates(("conv_3",), 1, stride=1, dims=2)
    net = chosen()
    net.choices = choices_of_genotype(GOLDEN, SPACE)
    nothing = net.choices["reduction"][PLACES[-2]]
    assert edge(torch.zeros(1, 1, 4, 4), nothing) == []
