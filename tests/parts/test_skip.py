"""What the paper's library asserts of skips, and what a pipeline of several processes needs."""

import copy
import pickle
import random
import threading

import pytest
import torch
from torch import nn

from raykb.gpipe import skip
from raykb.parts.skip import (
    Namespace,
    Skippable,
    carry,
    pop,
    skip_problems,
    skip_routes,
    skippable,
    stash,
    verify_skippables,
)


@skippable(stash=["foo"])
class Stash(nn.Module):
    """Leave the input."""

    def __init__(self, factor=1.0, *, scaled=True):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor)) if scaled else 1.0

    def forward(self, input):
        yield stash("foo", input * self.factor)
        return input


@skippable(pop=["foo"])
class Pop(nn.Module):
    def forward(self, input):
        foo = yield pop("foo")
        return input + foo


@skippable(stash=["b", "a"], pop=["c"])
class Both(nn.Module):
    def forward(self, input):
        c = yield pop("c")
        yield stash("a", input)
        yield stash("b", None)
        return input + c


@skippable(stash=["c"])
class StashC(nn.Module):
    def forward(self, input):
        yield stash("c", 2 * input)
        return input


@skippable(pop=["a", "b"])
class PopBoth(nn.Module):
    def forward(self, input):
        a = yield pop("a")
        b = yield pop("b")
        return input + a if b is None else b


ONE = torch.ones(2)


# ------------------------------------------------------------------------------ the layer itself


def test_the_paper_librarys_names_are_handed_on():
    assert {name: getattr(skip, name) for name in skip.__all__} == {
        "Namespace": Namespace,
        "pop": pop,
        "skippable": skippable,
        "stash": stash,
        "verify_skippables": verify_skippables,
    }


def test_repr_shows_the_wrapped_module():
    @skippable(stash=["hello"])
    class Hello(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

    assert repr(Hello()) == (
        "@skippable(Hello(\n  (conv): Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1))\n))"
    )


def test_a_decorated_class_is_a_module_with_its_own_name_and_arguments():
    layer = Stash(3.0, scaled=True)
    assert isinstance(layer, nn.Module)
    assert isinstance(layer, Skippable)
    assert (Stash.__name__, Stash.__doc__, Stash.__module__) == (
        "Stash",
        "Leave the input.",
        __name__,
    )
    assert layer.state_dict() == {"module.factor": torch.tensor(3.0)}
    assert list(Stash(scaled=False).parameters()) == []


def test_an_unwrapped_model_hands_its_skips_over_and_the_gradients_with_them():
    x = ONE.clone().requires_grad_()
    model = nn.Sequential(Stash(3.0), nn.Tanh(), Pop())
    y = model(x)
    torch.testing.assert_close(y, x.tanh() + 3 * x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 1 - x.detach().tanh() ** 2 + 3)
    torch.testing.assert_close(model[0].module.factor.grad, torch.tensor(2.0))


def test_none_is_a_skip_and_one_layer_may_stash_and_pop_different_names():
    model = nn.Sequential(StashC(), Both(), PopBoth())
    verify_skippables(model)
    store = {}
    with carry(store):
        torch.testing.assert_close(model[:2](ONE), 3 * ONE)
        assert list(store) == [(None, "a"), (None, "b")]
        assert store[None, "b"] is None
        torch.testing.assert_close(model[2](ONE), 2 * ONE)
    assert store == {}


def test_the_order_of_the_names_is_that_of_every_process():
    """A set's own order differs from process to process."""
    names = list("hcfbgaed")
    for given in (names, set(names), reversed(names)):
        layer = skippable(stash=given, pop=["n", *"mlkji"])(nn.Tanh)()
        assert list(layer.stashable()) == [(None, name) for name in "abcdefgh"]
        assert list(layer.poppable()) == [(None, name) for name in "ijklmn"]


# --------------------------------------------------------------------------------- while it runs


def layer_of(forward, **names):
    return skippable(**names)(type("Layer", (nn.Module,), {"forward": forward}))()


def undeclared_stash(self, input):
    yield stash("bar", input)
    return input


def undeclared_pop(self, input):
    return input + (yield pop("bar"))


def twice(self, input):
    foo = yield pop("foo")
    return foo + (yield pop("foo"))


def nothing(self, input):
    return input


def number(self, input):
    yield 42
    return input


@pytest.mark.parametrize(
    ("forward", "names", "error", "text"),
    [
        (undeclared_stash, {}, RuntimeError, "'bar' has not been declared as stashable"),
        (undeclared_pop, {}, RuntimeError, "'bar' has not been declared as poppable"),
        (undeclared_pop, {"pop": ["bar"]}, RuntimeError, "'bar' has not been stashed"),
        (twice, {"pop": ["foo"]}, RuntimeError, "'foo' has not been stashed"),
        (nothing, {"stash": ["a", "b"]}, RuntimeError, "'a', 'b' must be stashed but have not"),
        (nothing, {"pop": ["foo"]}, RuntimeError, "'foo' must be popped but have not"),
        (undeclared_stash, {"stash": ["bar", "foo"]}, RuntimeError, "'foo' must be stashed but"),
        (number, {}, TypeError, "42 is not a command of a skippable: yield stash or pop"),
    ],
)
def test_a_layer_that_breaks_its_word_is_refused(forward, names, error, text):
    store = {(None, "foo"): ONE}
    with carry(store), pytest.raises(error, match=text):
        layer_of(forward, **names)(ONE)
    assert (None, "bar") not in store, "a layer that failed left a skip behind"


def test_a_store_is_left_also_when_a_layer_fails():
    outer = {}
    with carry(outer):
        with pytest.raises(RuntimeError, match="shape"), carry({}):
            nn.Linear(3, 3)(ONE)
        Stash()(ONE)
    assert list(outer) == [(None, "foo")]


def test_each_thread_has_its_own_store():
    seen = []

    def run():
        try:
            Pop()(ONE)
        except RuntimeError as error:
            seen.append(str(error))

    with carry({(None, "foo"): ONE}):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        torch.testing.assert_close(Pop()(ONE), 2 * ONE)
    assert seen == ["'foo' has not been stashed"]


# ----------------------------------------------------------------------------------- namespaces


def test_namespaces_differ_but_for_copies_and_namesakes():
    first, second = Namespace(), Namespace()
    assert first != second
    for same in (copy.copy(first), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert same == first
        assert same is not first
        assert hash(same) == hash(first)
    assert Namespace("block") == Namespace("block") != Namespace("other")
    assert first != first.id


def test_namespaces_have_an_order():
    spaces = [Namespace() for _ in range(9)]
    shuffled = random.Random(0).sample(spaces, 9)
    assert sorted(shuffled) == sorted(spaces)
    assert Namespace("a") < Namespace("b") >= Namespace("b") > Namespace("a")


def test_isolate_renames_all_names_or_some():
    ns = Namespace()
    layer = Both().isolate(ns)
    assert layer.stashable() == [(ns, "a"), (ns, "b")]
    assert layer.poppable() == [(ns, "c")]
    layer = Both()
    assert layer.isolate(ns, only=["a"]) is layer
    assert layer.stashable() == [(ns, "a"), (None, "b")]
    assert layer.poppable() == [(None, "c")]
    with pytest.raises(ValueError, match=r"only=\['a', 'x'\]: 'x' not among .*'a', 'b', 'c'"):
        layer.isolate(ns, only=["a", "x"])


def test_isolated_pairs_of_one_name_keep_apart():
    one, two = Namespace(), Namespace()
    model = nn.Sequential(
        Stash(1.0).isolate(one), Stash(5.0).isolate(two), Pop().isolate(one), Pop().isolate(two)
    )
    verify_skippables(model)
    torch.testing.assert_close(model(ONE), 7 * ONE)


# ----------------------------------------------------------------------------- copies of a model


def copies(model):
    yield "deepcopy", copy.deepcopy(model)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield f"pickle {protocol}", pickle.loads(pickle.dumps(model, protocol))


def test_a_model_can_be_copied_and_pickled():
    model = nn.Sequential(Stash(3.0).isolate(Namespace()), nn.Linear(2, 2), Pop())
    model[2].namespaces = model[0].namespaces
    expected = model(ONE)
    for how, twin in copies(model):
        assert type(twin[0]) is Stash, how
        assert twin[0].stashable() == model[0].stashable(), how
        torch.testing.assert_close(twin(ONE), expected, rtol=0, atol=0, msg=how)


def test_a_class_of_a_function_is_shipped_by_ray():
    cloudpickle = pytest.importorskip("ray.cloudpickle")

    @skippable(stash=["foo"])
    class Local(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, input):
            yield stash("foo", self.factor * input)
            return input

    for model in (nn.Sequential(Local(3.0), Pop()), nn.Sequential(Stash(3.0), Pop())):
        twin = cloudpickle.loads(cloudpickle.dumps(model))
        assert repr(twin) == repr(model)
        torch.testing.assert_close(twin(ONE), 4 * ONE)


# ------------------------------------------------------------------------- before anything runs


STASHED, POPPED = "as stashable", "as poppable"
AGAIN = "'{}' redeclared 'foo' {} but not isolated by namespace"
LEFT = "no module declared 'foo' as poppable but stashed"
SAME = "'{}' declared 'foo' both as stashable and as poppable"
UNKNOWN = "'{}' declared 'foo' as poppable but it was not stashed"


def both_ways():
    return layer_of(nothing, stash=["foo"], pop=["foo"])


@pytest.mark.parametrize(
    ("layers", "problems"),
    [
        ([], []),
        ([Stash(), Pop()], []),
        ([Stash(), nn.ReLU(), Pop()], []),
        ([StashC(), Both(), PopBoth()], []),
        ([Stash()], [LEFT]),
        ([Pop()], [UNKNOWN.format(0)]),
        ([Pop(), Stash()], [UNKNOWN.format(0), LEFT]),
        ([Stash(), Stash(), Pop()], [AGAIN.format(1, STASHED)]),
        ([Stash(), Pop(), Pop()], [AGAIN.format(2, POPPED)]),
        ([both_ways()], [SAME.format(0)]),
        (
            [Stash(), Pop(), Stash(), Pop()],
            [AGAIN.format(2, STASHED), AGAIN.format(3, POPPED)],
        ),
        ([Stash(), Pop().isolate(Namespace())], [UNKNOWN.format(1), LEFT]),
        ([nn.Sequential(Stash(), nn.ReLU()), Pop()], []),
        ([nn.Sequential(Pop(), Stash())], [UNKNOWN.format("0.0"), LEFT]),
        ([nn.ModuleDict({"late": Pop(), "early": Stash()})], []),
    ],
)
def test_every_skip_without_its_counterpart_is_reported(layers, problems):
    model = nn.Sequential(*layers)
    assert skip_problems(list(model.named_children())) == problems
    if not problems:
        return verify_skippables(model)
    with pytest.raises(TypeError) as raised:
        verify_skippables(model)
    assert str(raised.value) == "\n".join(
        ["one or more pairs of stash and pop do not match:", "", *(f"* {p}" for p in problems)]
    )


def test_two_isolated_pairs_match():
    one, two = Namespace(), Namespace()
    layers = [Stash().isolate(one), Pop().isolate(one), Stash().isolate(two), Pop().isolate(two)]
    verify_skippables(nn.Sequential(*layers))


# ---------------------------------------------------------------------------------------- routes


def test_only_skips_that_cross_parts_have_a_route():
    one, two, three = Namespace("z"), Namespace("y"), Namespace("x")
    stashes = {ns: Stash().isolate(ns) for ns in (one, two, three)}
    pops = {ns: Pop().isolate(ns) for ns in (one, two, three)}
    tanh = nn.Tanh()
    assert skip_routes([[tanh], [tanh]]) == {}
    assert skip_routes([[stashes[one], pops[one]], [tanh]]) == {}
    assert skip_routes([[stashes[one]], [pops[one]]]) == {(one, "foo"): (0, 1)}
    assert skip_routes([[stashes[one]], [tanh], [pops[one]]]) == {(one, "foo"): (0, 2)}
    routes = skip_routes(
        [[stashes[one], stashes[three], pops[three]], [stashes[two]], [pops[two], pops[one]]]
    )
    assert list(routes.items()) == [((one, "foo"), (0, 2)), ((two, "foo"), (1, 2))]


def test_skips_inside_nested_layers_have_routes():
    assert skip_routes([[nn.Sequential(Stash())], [nn.Sequential(nn.Tanh(), Pop())]]) == {
        (None, "foo"): (0, 1)
    }


def test_routes_come_in_the_order_of_the_stashes():
    spaces = [Namespace() for _ in range(9)]
    routes = skip_routes(
        [[Stash().isolate(ns) for ns in spaces], [Pop().isolate(ns) for ns in reversed(spaces)]]
    )
    assert [ns for ns, _ in routes] == spaces
