"""FixMatch with contrastive regularization: unconfident samples learn from confident clusters.

Lee, Kim, Kim, Cheon, Cho, Han, "Contrastive Regularization for Semi-Supervised Learning", CVPR 2022
workshop L3D-IVU, arXiv:2201.06247.

    L    = L_s + lambda_u L_u + lambda_cr L_cr           L_s, L_u as in FixMatch
    L_cr = mean_i l_i                                    over confident i with P(i) not empty
    l_i  = -1/|P(i)| sum_{j in P(i)} (S_ij - log sum_{k != i} exp S_ik)
    S_ij = z_i z_j / T                                   z_i = l2norm(g(h(A(u_i))))
    P(i) = {j != i : y_j = y_i}                          confident or not

    y_i = argmax q_i, c_i = [max q_i >= tau]             q_i = softmax f(a(u_i)), no gradient

Symbols:
    u_i        unlabelled image, i = 1..N; a, A: its weak and strong view
    f          network, to logits (C,); h its features, which the last linear layer takes
    g          projection: linear, leaky ReLU, linear, to (d,)
    y_i, c_i   cluster (pseudo-label) and whether it is confident
    T, tau     temperature of the contrast, threshold of confidence

So confident features pull all members of their cluster and push all else; an unconfident sample,
from which FixMatch learns nothing, gets gradient as member of a confident cluster.

Departures, and what is reconstruction: there is no official code, and L_cr above is a *reading of
the abstract* ("features with confident pseudo-labels aggregate the features in the same cluster,
while pushing away features in different clusters"), with details, temperature, weight and the
projection after its neighbours CCSSL and CoMatch. Do not call it the paper's until it is checked.
Each point that the abstract leaves open is an option, the default first:

    anchors      ``confident`` | ``all``           who is an i
    positives    ``cluster`` | ``confident_cluster``   whether P(i) has unconfident members
    anchor_grad  true | false                      false: only the aggregated member moves
    normalize    ``anchors`` | ``batch``           what sum_i l_i is divided by: valid i, or N
    views        1 | 2                             strong views in L_cr; L_u takes the first
    labelled     false | true                      whether labelled images (their one, weak view)
                                                   join, as confident members of their true class

The similarities are computed in float32 also under autocast.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raykb.engine.arguments import refuse_outside
from raykb.engine.objective import Batch, Objective, Task, Terms
from raykb.parts.backbone import Backbone, require
from raykb.parts.gather import gather
from raykb.parts.heads import projection_head
from raykb.parts.precision import at_least_float32
from raykb.semi.batch import SemiBatch
from raykb.semi.consistency import confidence, predictions_and_projections
from raykb.semi.fixmatch import fixmatch_loss
from raykb.semi.pseudo_labels import PseudoLabelFigures

Anchors = Literal["confident", "all"]
Positives = Literal["cluster", "confident_cluster"]
Normalize = Literal["anchors", "batch"]


def contrastive_regularization(
    features: Tensor,
    pseudo_labels: Tensor,
    confident: Tensor,
    temperature: float,
    anchors: Anchors = "confident",
    positives: Positives = "cluster",
    normalize: Normalize = "anchors",
    *,
    anchor_grad: bool = True,
) -> Tensor:
    """Return L_cr, a scalar; exactly 0 if no anchor has a positive.

    Args:
        features: (N, d), of any length: they are normalised here.
        pseudo_labels: (N,) clusters.
        confident: (N,) whether each is sure, as booleans or as 0 and 1.
        temperature: T, at least 1e-6.
        anchors: ``confident`` or ``all``.
        positives: ``cluster`` or ``confident_cluster``.
        normalize: ``anchors`` or ``batch``.
        anchor_grad: whether anchors move, too, or only their positives and negatives.

    Raises:
        ValueError: an option is none of these, the temperature is below 1e-6, or the samples are
            of other shapes or types.
    """
    _check_options(anchors, positives, normalize, temperature)
    _check_samples(features, pseudo_labels, confident)
    features, confident = at_least_float32(features), confident.bool()
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    members = (pseudo_labels[:, None] == pseudo_labels) & ~own  # (N, N): row i is P(i)
    if positives == "confident_cluster":
        members = members & confident
    valid = members.any(1)  # (N,)
    if anchors == "confident":
        valid = valid & confident
    rows = valid.nonzero()[:, 0]  # the one wait for the device, for their number decides the mean
    if not len(rows):
        return features[:0].sum()  # 0 whatever the features, and in the graph

    log_share = _log_share(features, temperature, own, anchor_grad)[rows]  # (anchors, N)
    members = members[rows]
    losses = -log_share.where(members, 0.0).sum(1) / members.sum(1)
    return losses.mean() if normalize == "anchors" else losses.sum() / len(features)


def _log_share(features: Tensor, temperature: float, own: Tensor, anchor_grad: bool) -> Tensor:
    """Return the logarithm of each sample's share of the similarity of all others, (N, N)."""
    with torch.autocast(features.device.type, enabled=False):  # bf16 has 3 digits; S reaches 1 / T
        features = _directions(features)
        anchored = features if anchor_grad else features.detach()
        similarity = (anchored @ features.T / temperature).masked_fill(own, -torch.inf)
        return similarity.log_softmax(1)


def _directions(features: Tensor) -> Tensor:
    """Return features (N, d) of length 1; without length there is no direction, and no gradient."""
    largest = features.detach().abs().amax(1, keepdim=True)  # (N, 1)
    exponents = torch.frexp(largest).exponent.clamp(-126, 126)
    # a power of two changes no bit of the result, and keeps squares of 1e20 or 1e-30 in range
    features = features * torch.ldexp(torch.ones_like(largest), -exponents)
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)  # (N, 1)
    return features / lengths.masked_fill(lengths == 0.0, torch.inf)


def _check_options(anchors: str, positives: str, normalize: str, temperature: float) -> None:
    allowed = {
        "anchors": (anchors, ("confident", "all")),
        "positives": (positives, ("cluster", "confident_cluster")),
        "normalize": (normalize, ("anchors", "batch")),
    }
    problems = [
        f"{name}: {value!r}, must be {options[0]!r} or {options[1]!r}"
        for name, (value, options) in allowed.items()
        if value not in options
    ]
    if not temperature >= 1e-6:
        problems.append(f"temperature: {temperature}, must be at least 1e-6")
    if problems:
        raise ValueError("; ".join(problems))


def _check_samples(features: Tensor, pseudo_labels: Tensor, confident: Tensor) -> None:
    count = (len(features),)
    if features.ndim != 2 or pseudo_labels.shape != count or confident.shape != count:
        raise ValueError(
            f"features, pseudo_labels, confident: {tuple(features.shape)}, "
            f"{tuple(pseudo_labels.shape)} and {tuple(confident.shape)}, must be (N, d), (N,), (N,)"
        )
    if not features.is_floating_point():
        raise ValueError(f"features: {features.dtype}, must be floating point")
    if confident.is_floating_point() and not ((confident == 0) | (confident == 1)).all():
        raise ValueError(
            "confident: neither 0 nor 1 somewhere, must say of each sample whether it is sure; "
            "compare probabilities with the threshold first"
        )


class ContrastiveRegularization(Objective):
    """FixMatch with contrastive regularization.

    Args:
        task: what it is told.
        threshold: tau.
        unlabelled_weight: lambda_u.
        weight: lambda_cr; 0 is FixMatch.
        temperature: T.
        projection: width d of the projected features.
        hidden: width of the projection's hidden layer; None for that of the features.
        anchors: see the options above.
        positives: see the options above.
        normalize: see the options above.
        anchor_grad: see the options above.
        views: see the options above.
        labelled: see the options above.
    """

    sees = SemiBatch

    def __init__(
        self,
        task: Task,
        *,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        weight: float = 1.0,
        temperature: float = 0.1,
        projection: int = 64,
        hidden: int | None = None,
        anchors: Anchors = "confident",
        positives: Positives = "cluster",
        normalize: Normalize = "anchors",
        anchor_grad: bool = True,
        views: Literal[1, 2] = 1,
        labelled: bool = False,
    ) -> None:
        super().__init__(task)
        self.pseudo_labels = PseudoLabelFigures(task)
        refuse_outside(
            threshold=(threshold, 0.0, 1.0),
            unlabelled_weight=(unlabelled_weight, 0.0, float("inf")),
            weight=(weight, 0.0, float("inf")),
        )
        _check_options(anchors, positives, normalize, temperature)
        if views not in (1, 2):
            raise ValueError(f"views: {views}, must be 1 or 2")
        self.threshold, self.temperature = threshold, temperature
        self.unlabelled_weight, self.weight = unlabelled_weight, weight
        self.anchors, self.positives, self.normalize = anchors, positives, normalize
        self.anchor_grad, self.strong_views, self.labelled = anchor_grad, views, labelled
        width = require(task.network, Backbone, "contrastive_regularization").width
        self.head = projection_head(width, projection, hidden=hidden)
        self.head.requires_grad_(weight > 0.0)  # else it has a part in the norm of the gradient

    def forward(self, network: nn.Module, batch: Batch, step: int) -> Terms:
        """Return ``loss``, its three parts, and the figures of the pseudo-labels."""
        (labelled, weak, strong, *_), (z_labelled, _, *z_strong) = predictions_and_projections(
            network, self.head, batch.images, batch.weak, *batch.strong.unbind(1)
        )
        truths = gather(batch.labels)
        highest, labels = confidence(weak)
        confident = highest >= self.threshold

        loss_labelled = F.cross_entropy(labelled, truths)
        loss_unlabelled = fixmatch_loss(weak, strong, self.threshold)
        features = torch.cat(z_strong)
        clusters, sure = labels.repeat(self.strong_views), confident.repeat(self.strong_views)
        if self.labelled:
            features = torch.cat([features, z_labelled])
            clusters = torch.cat([clusters, truths])
            sure = torch.cat([sure, torch.ones_like(truths, dtype=torch.bool)])
        loss_contrast = contrastive_regularization(
            features,
            clusters,
            sure,
            self.temperature,
            self.anchors,
            self.positives,
            self.normalize,
            anchor_grad=self.anchor_grad,
        )
        return {
            "loss": loss_labelled
            + self.unlabelled_weight * loss_unlabelled
            + self.weight * loss_contrast,
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
            "loss_contrast": loss_contrast.detach(),
        } | self.pseudo_labels.figures(labels, confident, batch.ids)
