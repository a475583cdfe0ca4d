"""Forward passes on a device that has no values here: nothing on the CPU, no wait but the known.

A wait in the middle of a step costs a GPU its lead over the host. Those that are known stand here
with their place: where one goes, its row goes; where one comes, a test fails.
"""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda

from raykb.augment.augmentations import AUGMENTATIONS
from raykb.augment.fast_autoaugment import PolicyEvaluator
from raykb.augment.policy import Policy
from raykb.data.box_views import BoxesView
from raykb.data.corruptions import CORRUPTIONS, EXTRA, corrupted
from raykb.data.crop_views import (
    CropsView,
    LabelledCropView,
    MultiCropView,
    TilesView,
    TurnedView,
)
from raykb.data.crops import CROPS
from raykb.data.mask_views import CorruptedView, MaskedView
from raykb.data.operations import OPERATIONS, apply_operation
from raykb.data.strong import WeakStrong
from raykb.data.views import VIEWS
from raykb.data.volume_augmentations import PATCH_AUGMENTATIONS
from raykb.engine.objective import CrossEntropy, Task
from raykb.evaluate.backbone import Features
from raykb.evaluate.knn import KNN
from raykb.evaluate.linear_probe import Probe
from raykb.evaluate.localisation import Heads, Positions, middles, ridge
from raykb.evaluate.regions import agreement
from raykb.evaluate.retrieval import ranked, scores
from raykb.metrics.classification import class_accuracies, confusion_matrix, top_k_accuracy
from raykb.models import MODELS, SEGMENTERS, SEQUENTIALS
from raykb.models.unet import unet
from raykb.parts.gather import gather
from raykb.parts.heads import projection_head
from raykb.segmentation.losses import DiceCrossEntropy, VoxelBatch
from raykb.selfsup.byol import byol_loss
from raykb.selfsup.simclr import nt_xent_loss
from raykb.semi import freematch, softmatch
from raykb.semi.consistency import masked_cross_entropy
from raykb.semi.contrastive_regularization import contrastive_regularization
from raykb.semi.fixmatch import fixmatch_loss
from raykb.semi.flexmatch import flexible_thresholds, learning_status
from raykb.semi.pseudo_label import pseudo_label_loss
from raykb.semi.pseudo_labels import positions
from raykb.semi.uda import annealed_loss, uda_loss

SMALL = {
    "wide_resnet": {"depth": 10, "width": 1},
    "amoebanet_d": {"layers": 3, "filters": 16},
}
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


def tensors(found):
    """Return the tensors of what a function returned."""
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for part in found for tensor in tensors(part)]


def check(found, gpu, waits=()):
    """Check that a result is on the device, and that nothing waited for it but the known."""
    assert {tensor.device for tensor in tensors(found)} == {CUDA}
    assert gpu.waits == list(waits)


# Networks


@pytest.mark.parametrize(("mode", "precision"), [("train", "bf16"), ("eval", "fp32")])
@pytest.mark.parametrize("name", sorted({**MODELS, **SEQUENTIALS}))
def test_networks(name, mode, precision):
    build = {**MODELS, **SEQUENTIALS}[name]
    with fake_cuda() as gpu:
        with torch.device(CUDA):  # an image net of the papers needs no memory here
            network = build(classes=7, channels=3, **SMALL.get(name, {}))
        network.train(mode == "train")
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(gpu.moved(torch.zeros(2, 3, 32, 32)))
        check(logits, gpu)
    assert logits.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize("name", ["small_convnet", "small_resnet_sequential", "amoebanet_d"])
def test_networks_that_were_built_on_the_cpu_move_whole(name):
    network = {**MODELS, **SEQUENTIALS}[name](classes=7, channels=1, **SMALL.get(name, {}))
    with fake_cuda() as gpu:
        check(gpu.moved(network)(gpu.moved(torch.zeros(2, 1, 32, 32))), gpu)


def test_the_unet_and_heads():
    with fake_cuda() as gpu:
        check(gpu.moved(unet(1, 4, 2))(gpu.moved(torch.zeros(2, 3, 13, 9))), gpu)
        check(gpu.moved(projection_head(5, 3))(gpu.moved(torch.zeros(2, 5))), gpu)
        check(gather(gpu.moved(torch.zeros(2, 5))), gpu)


def test_cross_entropy():
    with fake_cuda() as gpu:
        network = gpu.moved(MODELS["small_convnet"](7, 1, width=4))
        batch = gpu.moved((torch.zeros(2, 1, 16, 16), torch.arange(2)))
        objective = CrossEntropy(Task(network, steps=1, classes=7), label_smoothing=0.1)
        check(objective(network, batch, 0).values(), gpu)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_and_cross_entropy_of_voxels_at_each_level(batch_dice):
    network = SEGMENTERS["unet_3d"](3, 1, width=4, depth=2, deep_supervision=True)
    images, labels = torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    with fake_cuda() as gpu:
        network, batch = gpu.moved(network), VoxelBatch(*gpu.moved((images, labels)))
        objective = DiceCrossEntropy(Task(network, 1, 3), batch_dice=batch_dice)
        check(objective(network, batch, 0).values(), gpu)
        check(network.eval()(batch.images), gpu)


# Views and augmentations; what is drawn is drawn on the CPU


VIEW_OPTIONS = {"crop_flip": {"cutout": 8}, "resized_crop": {"size": 24}}


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_views(name):
    view = VIEWS[name](mean=(0.3,), std=(0.2,), **VIEW_OPTIONS[name])
    uniforms = torch.rand(len(IMAGES), view.draws, dtype=torch.float64)
    with fake_cuda() as gpu:
        images = gpu.moved(IMAGES)
        check((view(images, uniforms), view.plain(images)), gpu)


@pytest.mark.parametrize("strong_views", [1, 2])
def test_weak_and_strong_views(strong_views):
    views = WeakStrong(operations=14, strong_views=strong_views)
    with fake_cuda() as gpu:
        images, ids = gpu.moved(IMAGES), np.arange(len(IMAGES))
        check((*views(images, ids, 0, 1), views.weak(images, ids, 0, 1)), gpu)


FORM = VIEWS["crop_flip"](mean=(0.3,), std=(0.2,))
SELF_SUPERVISED = {
    f"crops {name}": MultiCropView(crops(blur=(1.0,), solarize=(0.5,)), FORM, 2)
    for name, crops in CROPS.items()
} | {
    "one crop": CropsView(CROPS["simclr"](), FORM, 1),
    "labelled crop": LabelledCropView(CROPS["simclr"](), FORM),
    "turned": TurnedView(FORM),
    "tiles": TilesView(FORM, np.array([[0, 1, 2, 3], [3, 1, 2, 0]])),
    "masked": MaskedView(CROPS["simclr"](size=8), FORM, 2, 0.5, unit=2),
    "corrupted": CorruptedView(CROPS["simclr"](size=8), FORM, 2),
    "corrupted by zeros": CorruptedView(CROPS["simclr"](size=8), FORM, 2, fill="zeros"),
    "boxes": BoxesView(CROPS["simclr"](size=8), FORM, count=3, least=2, jitter=0.1),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SELF_SUPERVISED)
def test_views_of_self_supervised_learning(name, channels):
    view = SELF_SUPERVISED[name]
    with fake_cuda() as gpu:
        images, labels = gpu.moved((IMAGES[:, :channels], LABELS[: len(IMAGES)]))
        found = view.train({"images": images, "labels": labels}, np.arange(len(IMAGES)), 0, 1)
        found["ids"] = gpu.moved(found["ids"])  # as a source does
        check(view.finish(found).values(), gpu)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, channels):
    operation = OPERATIONS[name]
    with fake_cuda() as gpu:
        images = gpu.moved(IMAGES[:, :channels])
        magnitude = torch.linspace(operation.low, operation.high, len(IMAGES), dtype=torch.float64)
        check(apply_operation(images, name, magnitude), gpu)


WAITS = {  # a file is written on the host; an edge is followed as far as it goes
    "jpeg_compression": ["raykb/data/corruptions/digital.py jpeg_compression: a copy to the host"],
    "spatter": ["raykb/data/corruptions/spatter.py edges: whether tensors are equal"],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*CORRUPTIONS, *EXTRA])
def test_corruptions(name, channels):
    with fake_cuda() as gpu:
        images = gpu.moved(IMAGES[:, :channels])
        check(corrupted(images, name, 2, ids=np.arange(4), seed=0), gpu, WAITS.get(name, ()))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentations(name):
    given = {"policy": "policy", "searched_policy": "searched"}.get(name)
    options = {given: Policy.random(5, 2, 0)} if given else {}
    augment = AUGMENTATIONS[name](**options)
    with fake_cuda() as gpu:
        check(augment(gpu.moved(IMAGES), np.arange(len(IMAGES)), 1), gpu)


@pytest.mark.parametrize("size", [(8, 8, 8), (4, 16, 16)])
def test_augmentations_of_patches(size):
    augmentation = PATCH_AUGMENTATIONS["nnunet"](size=size, spacing_mm=(2.0, 1.0, 1.0))
    images, labels = torch.rand(2, 3, *augmentation.reach), torch.ones(2, *augmentation.reach)
    uniforms = torch.rand(2, augmentation.draws, dtype=torch.float64)
    with fake_cuda() as gpu:
        moved = gpu.moved((images, labels.long(), uniforms))
        found = augmentation(*moved)
        check(found, gpu)
    assert (found[0].shape, found[1].shape) == ((2, 3, *size), (2, *size))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_score_of_a_policy(autocast):
    count = 6
    with fake_cuda() as gpu:
        evaluator = PolicyEvaluator(
            MODELS["small_convnet"](7, 3, width=4),
            np.zeros((count, 3, 16, 16), np.uint8),
            labels=np.zeros(count, np.int64),
            ids=np.arange(count),
            indices=np.arange(1, count),
            view=VIEWS["crop_flip"](mean=(0.3,), std=(0.2,), cutout=4),
            copies=2,
            batch_size=4,
            device="cuda",
            autocast=autocast,
        )
        scores = evaluator.score(Policy.random(5, 2, 0))
        assert {"min_loss", "mean_loss", "max_accuracy", "mean_accuracy"} <= scores.keys()
        # once for each chunk, at its end
        place = "raykb/augment/fast_autoaugment.py evaluate_chunk"
        assert gpu.waits == [f"{place}: a copy to the host"]


# Formulas of semi-supervised learning


WEAK, STRONG = torch.randn(6, 3), torch.randn(6, 3)
LABELS, SURE = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([True, False] * 3)
ROOM = "raykb/semi"
_COUNT = "the greatest number to count"
MARGINAL = torch.full((3,), 1 / 3)
RUNNING = freematch.Running(torch.tensor(0.5), MARGINAL, MARGINAL)
GAUSSIAN = softmatch.Running(torch.tensor(0.5), torch.tensor(1.0))
FAIRNESS = f"{ROOM}/freematch.py fairness"
CONTRAST = f"{ROOM}/contrastive_regularization.py contrastive_regularization"
FORMULAS = {
    "nt_xent": (functools.partial(nt_xent_loss, temperature=0.5), (WEAK, STRONG), []),
    "byol": (byol_loss, (WEAK, STRONG), []),
    "masked_cross_entropy": (masked_cross_entropy, (WEAK, LABELS, SURE), []),
    "fixmatch": (functools.partial(fixmatch_loss, threshold=0.9), (WEAK, STRONG), []),
    "uda": (functools.partial(uda_loss, threshold=0.8, temperature=0.4), (WEAK, STRONG), []),
    "uda, annealed": (functools.partial(annealed_loss, threshold=0.8), (WEAK, LABELS), []),
    "pseudo_label": (functools.partial(pseudo_label_loss, threshold=0.9), (WEAK,), []),
    "contrastive_regularization": (
        functools.partial(contrastive_regularization, temperature=0.1),
        (WEAK, LABELS, SURE),
        [f"{CONTRAST}: how many are not zero"],
    ),
    "flexmatch, status": (
        functools.partial(learning_status, classes=3),
        (LABELS - 1,),
        [],
    ),
    "flexmatch": (functools.partial(flexible_thresholds, threshold=0.9), (MARGINAL,), []),
    "freematch, running": (
        functools.partial(freematch.updated, momentum=0.9, clip=0.9),
        (RUNNING, WEAK),
        [],
    ),
    "freematch": (freematch.adaptive_thresholds, (RUNNING,), []),
    "freematch, fairness": (
        freematch.fairness,
        (STRONG, SURE, RUNNING),
        [f"{FAIRNESS}: how many are not zero"],
    ),
    "softmatch, running": (
        functools.partial(softmatch.updated, momentum=0.9),
        (GAUSSIAN, WEAK[:, 0]),
        [],
    ),
    "softmatch": (
        functools.partial(softmatch.gaussian_weights, width=2.0),
        (WEAK[:, 0], GAUSSIAN),
        [],
    ),
    "softmatch, aligned": (softmatch.aligned, (WEAK.softmax(1), MARGINAL), []),
    "positions": (
        positions,
        (LABELS[:3], LABELS),
        [],
    ),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name, half):
    formula, arguments, waits = FORMULAS[name]
    with fake_cuda(answers={"positions": False}) as gpu:
        arguments = gpu.moved(arguments)
        if half:  # as a network's output is under autocast
            arguments = [x.bfloat16() if is_logits(x) else x for x in arguments]
        check(formula(*arguments), gpu, waits)


def is_logits(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 2


# Evaluations of features, which ask for figures at their end


def test_nearest_neighbours():
    with fake_cuda() as gpu:
        features = Features(*gpu.moved((WEAK, LABELS)))
        judged = SimpleNamespace(train=features, test=features)
        assert KNN()(judged).figures.keys() == {"top1"}
        waits = ["scores: a number", "__call__: a number", "nearest: a number"]
        assert gpu.waits == [f"raykb/evaluate/knn.py {wait}" for wait in waits]


def test_regions():
    with fake_cuda() as gpu:
        pooled, boxes = gpu.moved((torch.zeros(2, 2, 3, 5), torch.zeros(2, 3, 4)))
        assert agreement(pooled, boxes, 0.0).keys() == {"same", "different", "agreement"}
        assert gpu.waits == ["raykb/evaluate/regions.py agreement: a number"]


def test_localisation():
    with fake_cuda() as gpu:
        rows, labels, boxes = gpu.moved((torch.zeros(2, 6, 5), LABELS[:2], torch.zeros(2, 4)))
        positions = Positions(rows, middles(gpu.moved(torch.zeros(1, 5, 2, 3))), boxes, labels)
        probe = Probe(*gpu.moved((torch.zeros(5), torch.ones(5), torch.zeros(4, 5), torch.ones(4))))
        heads = Heads(probe, *ridge(rows[0], boxes[:1].expand(6, 4), 0.1))
        check((positions.inside, *heads, *heads.found(positions)), gpu)


def test_ranks_of_retrieval():
    with fake_cuda() as gpu:
        features = Features(*gpu.moved((WEAK, LABELS)))
        check([scores(relevant) for relevant in ranked(features)], gpu)


# Figures, which are asked for once at the end


def test_figures():
    place = "raykb/metrics/classification.py"
    with fake_cuda(answers={"confusion_matrix": False}) as gpu:
        logits, labels = gpu.moved((WEAK, LABELS))
        confusion = confusion_matrix(logits.argmax(1), labels, 3)
        assert top_k_accuracy(logits, labels) == 1.0
        waits = [f"confusion_matrix: {what}" for what in ("rows of a mask", _COUNT)]
        waits = [f"{place} {wait}" for wait in (*waits, "top_k_accuracy: a number")]
        check(class_accuracies(confusion), gpu, waits)
