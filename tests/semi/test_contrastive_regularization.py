import itertools
import math

import pytest
import torch
from shared_methods import IDS, batch, classifier, method

from raykb.engine.objective import Learner, Task
from raykb.semi.contrastive_regularization import contrastive_regularization
from raykb.semi.fixmatch import fixmatch_loss

OPTIONS = list(
    itertools.product(
        ("confident", "all"), ("cluster", "confident_cluster"), ("anchors", "batch"), (True, False)
    )
)


def naive(features, labels, confident, temperature, anchors, positives, normalize):
    """Return the loss by the formula, sample by sample."""
    z = [row / row.norm() for row in features]
    numbers = range(len(z))
    losses = []
    for i in numbers:
        if anchors == "confident" and not confident[i]:
            continue
        members = [j for j in numbers if j != i and labels[j] == labels[i]]
        if positives == "confident_cluster":
            members = [j for j in members if confident[j]]
        if not members:
            continue
        others = torch.stack([z[i] @ z[k] / temperature for k in numbers if k != i])
        shares = [z[i] @ z[j] / temperature - others.logsumexp(0) for j in members]
        losses.append(-sum(shares) / len(members))
    if not losses:
        return torch.tensor(0.0)
    return sum(losses) / (len(losses) if normalize == "anchors" else len(z))


def drawn(count, seed, classes=3, width=5):
    numbers = torch.Generator().manual_seed(seed)
    features = 3 * torch.randn(count, width, generator=numbers, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=numbers)
    return features, labels, torch.rand(count, generator=numbers) < 0.5


def circle():
    angle = torch.tensor([0.0, 0.7, 1.9, 3.1])
    labels = torch.tensor([0, 0, 1, 1])
    return torch.stack([angle.cos(), angle.sin()], 1), labels, torch.tensor([1, 0, 1, 1])


@pytest.mark.parametrize(
    ("positives", "normalize", "wanted"),
    [
        ("cluster", "anchors", 0.231236),
        ("cluster", "batch", 0.173427),
        ("confident_cluster", "anchors", 0.346845),
        ("confident_cluster", "batch", 0.173423),
    ],
)
def test_the_golden_values(positives, normalize, wanted):
    loss = contrastive_regularization(*circle(), 0.1, "confident", positives, normalize)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("temperature", "wanted"), [(0.1, 9.0796e-5), (0.5, 0.239545)])
def test_two_orthogonal_clusters_of_two(temperature, wanted):
    features = torch.tensor([[2.0, 0], [1, 0], [0, 1], [0, 3]], dtype=torch.float64)
    labels, sure = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    loss = contrastive_regularization(features, labels, sure, temperature)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / temperature)))


@pytest.mark.parametrize(("members", "clusters"), [(2, 3), (4, 2), (3, 4)])
def test_perfect_clusters(members, clusters):
    features = torch.eye(clusters, dtype=torch.float64).repeat_interleave(members, 0)
    labels = torch.arange(clusters).repeat_interleave(members)
    sure, count = torch.ones(len(labels)), len(labels)
    wanted = math.log(members - 1 + (count - members) * math.exp(-1 / 0.2))
    assert contrastive_regularization(features, labels, sure, 0.2).item() == pytest.approx(wanted)


def test_features_that_are_all_the_same():
    labels = torch.tensor([0, 1] * 4)
    loss = contrastive_regularization(torch.ones(8, 3), labels, torch.ones(8), 0.1)
    assert loss.item() == pytest.approx(1.945910, abs=1e-6)


@pytest.mark.parametrize(("anchors", "positives", "normalize", "anchor_grad"), OPTIONS)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_it_is_the_formula_sample_by_sample(anchors, positives, normalize, anchor_grad, count):
    for seed, temperature in ((0, 0.07), (1, 0.5), (2, 1.0)):
        given = (*drawn(count, seed), temperature, anchors, positives, normalize)
        loss = contrastive_regularization(*given, anchor_grad=anchor_grad)
        assert loss.item() == pytest.approx(naive(*given).item(), rel=1e-9, abs=1e-12)


def test_the_order_and_the_length_of_features_do_not_matter():
    features, labels, sure = drawn(9, 0)
    loss = contrastive_regularization(features, labels, sure, 0.1).item()
    order = torch.randperm(9, generator=torch.manual_seed(3))
    other = contrastive_regularization(features[order], labels[order], sure[order], 0.1)
    assert other.item() == pytest.approx(loss)
    lengths = torch.arange(1.0, 10.0)[:, None]
    assert contrastive_regularization(features * lengths, labels, sure, 0.1).item() == (
        pytest.approx(loss)
    )


@pytest.mark.parametrize(("anchors", "positives", "normalize", "anchor_grad"), OPTIONS[::2])
def test_its_gradient_is_that_of_its_values(anchors, positives, normalize, anchor_grad):
    features, labels, sure = drawn(6, 1, classes=2)

    def loss(values):
        return contrastive_regularization(
            values, labels, sure, 0.5, anchors, positives, normalize, anchor_grad=anchor_grad
        )

    assert torch.autograd.gradcheck(loss, features.requires_grad_())


@pytest.mark.parametrize("anchors", ["confident", "all"])
def test_no_anchor_with_a_positive_is_exactly_zero_and_still_in_the_graph(anchors):
    features = torch.randn(4, 3, requires_grad=True)
    alone, sure = torch.arange(4), torch.ones(4, dtype=torch.bool)
    loss = contrastive_regularization(features, alone, sure, 0.1, anchors)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(4, 3))


def test_nobody_confident_is_exactly_zero():
    features, labels, _ = drawn(6, 0)
    features.requires_grad_()
    loss = contrastive_regularization(features, labels, torch.zeros(6, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize(
    "features",
    [torch.full((448, 64), 2.0, dtype=torch.float16), torch.tensor([[1e30], [torch.nan]])],
    ids=["sum beyond float16", "beyond float32"],
)
def test_nobody_confident_is_exactly_zero_whatever_the_features(features):
    features = features.clone().requires_grad_()
    labels = torch.zeros(len(features), dtype=torch.int64)
    loss = contrastive_regularization(features, labels, torch.zeros_like(labels), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_feature_without_length_has_no_direction_and_no_gradient(dtype):
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0]], dtype=dtype).requires_grad_()
    labels, sure = torch.tensor([0, 0, 1]), torch.tensor([True, True, False])
    loss = contrastive_regularization(features, labels, sure, 0.5)
    loss.backward()
    similarity = 2 * (0.6 - 0.8) / 2**0.5
    wanted = (math.log(1 + math.exp(similarity)) + math.log(2)) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-3)
    assert torch.equal(features.grad[1], torch.zeros(2, dtype=dtype))
    assert (features.grad[[0, 2]].abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("features", "labels", "sure", "message"),
    [
        (torch.ones(4, 2), torch.ones(1), torch.ones(4), r"\(4, 2\), \(1,\) and \(4,\), must be"),
        (torch.ones(4, 2), torch.ones(4), torch.ones(1), r"\(4, 2\), \(4,\) and \(1,\), must be"),
        (torch.ones(4), torch.ones(4), torch.ones(4), r"\(4,\), \(4,\) and \(4,\), must be"),
        (torch.ones(4, 2).long(), torch.ones(4), torch.ones(4), "torch.int64, must be floating"),
        (torch.ones(4, 2), torch.ones(4), torch.full((4,), 0.97), "neither 0 nor 1 somewhere"),
    ],
)
def test_samples_of_other_shapes_or_types_are_refused(features, labels, sure, message):
    with pytest.raises(ValueError, match=message):
        contrastive_regularization(features, labels, sure, 0.1)


def test_a_confident_sample_without_a_cluster_is_not_counted():
    features, labels, sure = drawn(6, 0, classes=2)
    sure[:] = True
    with_one_more = (
        torch.cat([features, torch.zeros(1, 5, dtype=torch.float64)]),
        torch.cat([labels, torch.tensor([7])]),
        torch.cat([sure, torch.tensor([True])]),
    )
    # a feature of length 0 has similarity 0 to all, which adds exp(0) to every sum
    z = torch.nn.functional.normalize(features)
    similarity = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    total = (similarity.exp().sum(1) + 1.0).log()
    members = (labels[:, None] == labels) & ~torch.eye(6, dtype=torch.bool)
    wanted = (total - similarity.where(members, 0.0).sum(1) / members.sum(1)).mean()
    assert contrastive_regularization(*with_one_more, 0.5).item() == pytest.approx(wanted.item())


def test_an_unconfident_sample_in_a_confident_cluster_gets_gradient_where_fixmatch_gives_none():
    weak = torch.tensor([[9.0, 0.0], [1.0, 0.5]])  # one cluster; the second is not confident
    features = torch.tensor([[1.0, 0.2], [0.3, 1.0], [-1.0, 0.1]], requires_grad=True)
    labels, sure = torch.tensor([0, 0, 1]), torch.tensor([True, False, False])
    contrastive_regularization(features, labels, sure, 0.1).backward()
    assert features.grad[1].abs().sum() > 0
    strong = torch.zeros(2, 2, requires_grad=True)
    fixmatch_loss(weak, strong, 0.95).backward()
    assert strong.grad[1].abs().sum() == 0
    assert strong.grad[0].abs().sum() > 0


def test_without_gradient_of_anchors_only_members_and_rivals_move():
    features = torch.tensor([[1.0, 0.2], [0.3, 1.0], [-1.0, 0.1]], requires_grad=True)
    labels, sure = torch.tensor([0, 0, 1]), torch.tensor([True, False, False])
    contrastive_regularization(features, labels, sure, 0.1, anchor_grad=False).backward()
    assert features.grad[0].abs().sum() == 0
    assert (features.grad[1:].abs().sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_similarities_keep_their_precision_under_autocast(dtype):
    features, labels, sure = drawn(40, 0)
    features = features.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_regularization(features, labels, sure, 0.07)
    exact = contrastive_regularization(features.double(), labels, sure, 0.07)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_options_that_do_not_exist_are_refused_together():
    with pytest.raises(
        ValueError,
        match=r"anchors: 'none', must be 'confident' or 'all'; positives: 'me', must be 'cluster' "
        r"or 'confident_cluster'; normalize: 'no', must be 'anchors' or 'batch'; "
        r"temperature: 0\.0, must be at least 1e-6",
    ):
        contrastive_regularization(*circle(), 0.0, "none", "me", "no")


# The objective


def run(objective, model, steps):
    optimizer = torch.optim.SGD(
        Learner(model, objective).parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2
    )
    for number in range(steps):
        objective(model, batch(seed=number), number)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def test_weight_0_is_fixmatch_bit_for_bit():
    fixmatch = run(method("fixmatch", threshold=0.35), classifier(), 8)
    after = torch.rand(3)
    zero = method("contrastive_regularization", threshold=0.35, weight=0.0)
    regularized = run(zero, classifier(), 8)
    assert torch.equal(torch.rand(3), after)  # nor was anything drawn from the global generator
    for name, value in fixmatch.items():
        assert torch.equal(value, regularized[name])
    one = run(method("contrastive_regularization", threshold=0.35, weight=1.0), classifier(), 8)
    assert not all(torch.equal(value, one[name]) for name, value in fixmatch.items())


def test_the_head_has_the_widths_asked_for_and_that_of_the_features():
    head = method("contrastive_regularization", projection=3, hidden=5).head
    assert (head[0].in_features, head[0].out_features, head[2].out_features) == (6, 5, 3)
    head = method("contrastive_regularization", projection=3).head
    assert (head[0].in_features, head[0].out_features, head[2].out_features) == (6, 6, 3)


def test_the_head_of_weight_0_is_not_trained():
    head = method("contrastive_regularization", weight=0.0).head
    assert not any(parameter.requires_grad for parameter in head.parameters())


def test_a_network_without_features_is_refused_by_name():
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    told = Task(plain, 20, 3, IDS)
    with pytest.raises(
        ValueError,
        match="network: Sequential has no classify, features, width, which "
        "contrastive_regularization needs; take one that has",
    ):
        method("contrastive_regularization", told=told)


def projected(objective, model, images):
    return objective.head(model.features(images))


def test_the_loss_is_made_of_its_parts():
    objective = method(
        "contrastive_regularization", threshold=0.35, weight=3.0, unlabelled_weight=2.0
    )
    model, seen = classifier(), batch()
    terms = objective(model, seen, 0)
    total = terms["loss_labelled"] + 2.0 * terms["loss_unlabelled"] + 3.0 * terms["loss_contrast"]
    assert terms["loss"].item() == pytest.approx(total.item())
    highest, labels = model(seen.weak).softmax(1).max(1)
    features = projected(objective, model, seen.strong[:, 0])
    wanted = contrastive_regularization(features, labels, highest >= 0.35, 0.1)
    assert terms["loss_contrast"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert wanted > 0


@pytest.mark.parametrize(
    "option",
    [
        {"anchors": "all"},
        {"positives": "confident_cluster"},
        {"normalize": "batch"},
        {"temperature": 0.5},
        {"labelled": True},
    ],
)
def test_every_option_reaches_the_loss(option):
    default = method("contrastive_regularization", threshold=0.4)
    model = classifier()
    other = method("contrastive_regularization", threshold=0.4, **option)
    first, second = (o(model, batch(), 0)["loss_contrast"] for o in (default, other))
    assert first > 0
    assert second > 0
    assert first != second


def test_stopped_anchors_have_the_same_loss_and_another_gradient():
    gradients = []
    for anchor_grad in (True, False):
        objective = method(
            "contrastive_regularization", threshold=0.35, anchor_grad=anchor_grad, weight=5.0
        )
        model = classifier()
        terms = objective(model, batch(), 0)
        terms["loss"].backward()
        gradients.append((terms["loss"].item(), objective.head[0].weight.grad))
    assert gradients[0][0] == gradients[1][0]
    assert not torch.equal(gradients[0][1], gradients[1][1])


def test_labelled_images_join_as_confident_members():
    objective = method("contrastive_regularization", threshold=1.0, labelled=True)
    model, seen = classifier(), batch()
    terms = objective(model, seen, 0)
    features = projected(objective, model, torch.cat([seen.strong[:, 0], seen.images]))
    labels = torch.cat([model(seen.weak).argmax(1), seen.labels])
    sure = torch.tensor([False] * 6 + [True] * 4)
    wanted = contrastive_regularization(features, labels, sure, 0.1)
    assert terms["loss_contrast"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_second_strong_view_joins_with_the_pseudo_label_of_its_image():
    objective = method("contrastive_regularization", threshold=0.35, views=2)
    model, seen = classifier(), batch(views=2)
    terms = objective(model, seen, 0)
    first, second = seen.strong.unbind(1)
    highest, labels = model(seen.weak).softmax(1).max(1)
    features = projected(objective, model, torch.cat([first, second]))
    sure = highest >= 0.35
    wanted = contrastive_regularization(features, labels.repeat(2), sure.repeat(2), 0.1)
    assert terms["loss_contrast"].item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted = fixmatch_loss(model(seen.weak), model(first), 0.35)
    assert terms["loss_unlabelled"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_more_than_two_strong_views_are_refused():
    with pytest.raises(ValueError, match="views: 3, must be 1 or 2"):
        method("contrastive_regularization", views=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-30])
def test_features_of_any_length_have_their_direction(scale, dtype):
    features, labels, sure = drawn(9, 3)
    features = features.to(dtype)

    def found(features):
        features = features.detach().requires_grad_()
        loss = contrastive_regularization(features, labels, sure, 0.1)
        (gradient,) = torch.autograd.grad(loss, features)
        return loss.detach(), gradient

    loss, gradient = found(features)
    scaled_loss, scaled_gradient = found(features * scale)
    torch.testing.assert_close(scaled_loss, loss)
    torch.testing.assert_close(scaled_gradient * scale, gradient)
    exact_loss, exact_gradient = found(features * 2.0**40)  # to the bit
    assert torch.equal(exact_loss, loss)
    assert torch.equal(exact_gradient * 2.0**40, gradient)
