"""The contract of an objective, held by every row of every table, as its YAMLs have it smoke.

A new method needs nothing here: it is found by its row. A new kind of batch needs a row of SEEN.
"""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from fake_cuda import CUDA, fake_cuda
from torch import nn

from raykb.augment.loss_prediction import OBJECTIVES as PREDICTION
from raykb.augment.loss_prediction import LossBatch
from raykb.config import SMOKE, build
from raykb.config.reading import read
from raykb.engine.checkpoint import decode, encode
from raykb.engine.objective import OBJECTIVES, LabelledBatch, Learner, Task, learning_step
from raykb.engine.seeding import generator
from raykb.models.spatially_attentive import SpatiallyAttentive
from raykb.models.vilt import ViLT
from raykb.models.vit import VisionTransformer
from raykb.parts.backbone import LayeredClassifier, freeze_classifier
from raykb.parts.patches import hidden_count
from raykb.recognition import METHODS as RECOGNITION
from raykb.recognition import PAIR_METHODS
from raykb.recognition.batch import MixedBatch, PairBatch, SoftBatch
from raykb.segmentation import METHODS as SEGMENTATION
from raykb.segmentation.losses import VoxelBatch
from raykb.selfsup import METHODS as SELFSUP
from raykb.selfsup.batch import (
    BoxesBatch,
    CorruptedBatch,
    MaskedBatch,
    MultiCropBatch,
    TilesBatch,
    TurnedBatch,
    ViewsBatch,
)
from raykb.semi import METHODS as SEMI
from raykb.semi.batch import SemiBatch

TABLES = {
    "engine": OBJECTIVES,
    "pairs": PAIR_METHODS,
    "recognition": RECOGNITION,
    "segmentation": SEGMENTATION,
    "selfsup": SELFSUP,
    "semi": SEMI,
    "tta": PREDICTION,
}
CONFIGS = sorted((Path(__file__).parents[2] / "pipelines/configs").glob("*/*.yaml"))
CLASSES, STEPS = 3, 20
IDS = torch.arange(5, 105, 7)

WAITS = {
    "selfsup/scrl": [
        # batch norm is of the images with regions in common alone, as many as there are
        "raykb/selfsup/scrl.py forward: how many are not zero"
    ],
    "recognition/saol": [
        # donors need not pass where nothing was pasted, as in half of CutMix's steps
        "raykb/recognition/saol.py _asks: a number"
    ],
    "semi/freematch": [
        # L_f is of the confident alone, and a mean with zeros between them is rounded otherwise
        "raykb/semi/freematch.py fairness: how many are not zero"
    ],
    "semi/contrastive_regularization": [
        # L_cr is of the anchors alone: the same
        "raykb/semi/contrastive_regularization.py contrastive_regularization: how many are not zero"
    ],
}
"""What asks the device for a value in the middle of a step, and why it must."""


OVER = {  # what rivals are of, where these are no methods
    "anytime": "strategy",
    "augment": "augmentation",
    "nas": "model",
    "recognition": "mixing",
    "segmentation": "model",
}

# What is tested: every row with every section `method`, or rival, that a YAML's smoke run has


def section(config, name):
    """Return a section as a smoke run has it; one with a name replaces the file's own."""
    own, smoke = (of.get(name) or {} for of in (config, config.get(SMOKE) or {}))
    return smoke if "name" in smoke else own | smoke


def written():
    """Yield the table and the settings of all methods in YAMLs."""
    for path in CONFIGS:
        config, _ = read(path.read_text(encoding="utf-8"))
        comparison = section(config, "comparison")
        rows = [section(config, "method")]
        if comparison.get("over", OVER.get(path.parent.name, "method")) == "method":
            rows += comparison.get("rivals", {}).values()
        room = "tta" if path.stem.startswith("tta_") else path.parent.name
        table = room if room in TABLES else "engine"
        yield from ((table, row) for row in rows if "name" in row)  # or of one kind


def cases():
    """Return sections by row and settings, as ``semi/uda`` or ``semi/uda {'threshold': 0.9}``."""
    found = {}
    for table, row in written():
        extra = {key: value for key, value in row.items() if key != "name"}
        found[f"{table}/{row['name']} {extra or ''}".strip()] = (table, row)
    named = {(table, row["name"]) for table, row in found.values()}
    for table, rows in TABLES.items():
        for name in rows:
            if (table, name) not in named:
                found[f"{table}/{name}"] = (table, {"name": name})
    return found


CASES = cases()


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def classifier():
    """Return a network of layers without chance that is sure of what it says."""
    layers = LayeredClassifier(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Tanh(),
        nn.Linear(6, CLASSES),
    )
    with torch.no_grad():
        layers[-1].weight.mul_(30.0)
    return layers


def transformer():
    """Return a network of patches."""
    return VisionTransformer(CLASSES, 1, image_size=8, patch=2, width=8, depth=2, heads=2)


def mapped():
    """Return a network whose features are the mean of its maps."""
    return LayeredClassifier(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def attentive():
    """Return a network that says of each place what is there."""
    return SpatiallyAttentive(mapped(), CLASSES, stages=3, head_width=4, output="spatial")


def reader():
    """Return a network that takes texts, too."""
    sizes = {"image_size": 8, "patch": 4, "width": 8, "depth": 2, "heads": 2}
    return ViLT(CLASSES, 1, vocabulary=20, text_length=6, **sizes)


def segmenter():
    """Return such a network that says it of each pixel."""
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, CLASSES, 1))
    with torch.no_grad():
        layers[-1].weight.mul_(10.0)
    return layers


def learner(case, seed=0):
    table, row = case
    sees = TABLES[table][row["name"]].sees
    if sees not in SEEN:
        pytest.fail(f"{sees.__name__}: SEEN has no way to make one; add it")
    torch.manual_seed(seed)
    own = SEEN[sees][1]()
    if table in ("pairs", "selfsup"):  # as every training without labels
        freeze_classifier(own)
    truths = torch.arange(len(IDS)) % CLASSES
    return Learner(own, build(TABLES[table], row, task=Task(own, STEPS, CLASSES, IDS, truths)))


# What they see


def labelled(size, numbers, objective):
    images = 2.0 * torch.randn(size, 1, 4, 4, generator=numbers)
    return LabelledBatch(images, torch.arange(size) % CLASSES)


def soft(size, numbers, objective):
    images, labels = labelled(size, numbers, objective)
    targets = torch.nn.functional.one_hot(labels, CLASSES).float()
    return SoftBatch(images, 0.7 * targets + 0.3 * targets.roll(1, 1))


def mixed(size, numbers, objective):
    images, targets = soft(size, numbers, objective)
    masks = (torch.arange(16).view(1, 1, 4, 4) % 4 < 2).expand(size, -1, -1, -1)
    donors = images.roll(1, 0)
    return MixedBatch(torch.where(masks, images, donors), targets, masks, donors)


def semi(size, numbers, objective):
    rows = 2 * size  # unlabelled ones, for a method may tell them from the labelled by their number
    views = getattr(objective, "strong_views", 1)
    return SemiBatch(
        *labelled(size, numbers, objective),
        2.0 * torch.randn(rows, 1, 4, 4, generator=numbers),
        2.0 * torch.randn(rows, views, 1, 4, 4, generator=numbers),
        IDS[torch.randperm(len(IDS), generator=numbers)[:rows]],
    )


def voxels(size, numbers, objective):
    images = 2.0 * torch.randn(size, 1, 4, 4, generator=numbers)
    return VoxelBatch(images, torch.randint(CLASSES, (size, 4, 4), generator=numbers))


def several_views(size, numbers, objective):
    rows = 2 * size  # one image has none to differ from
    views = 2.0 * torch.randn(rows, 2, 1, 4, 4, generator=numbers)
    return ViewsBatch(views, torch.arange(rows))


def crops(size, numbers, objective):
    views, ids = several_views(size, numbers, objective)
    local = 2.0 * torch.randn(len(ids), objective.local_views, 1, 3, 3, generator=numbers)
    return MultiCropBatch(views, local, ids)


def pretext(size, numbers, objective):
    images, labels = labelled(size, numbers, objective)
    return objective.sees(images, labels, torch.arange(size))


def masked(size, numbers, objective):
    images = 2.0 * torch.randn(size, 1, 8, 8, generator=numbers)
    places = torch.rand(size, 16, generator=numbers).argsort(1)
    return MaskedBatch(images, places < hidden_count(16, objective.mask_ratio), torch.arange(size))


def corrupted(size, numbers, objective):
    images, noise = 2.0 * torch.randn(2, size, 1, 8, 8, generator=numbers)
    mask = torch.arange(64).view(8, 8).expand(size, 1, 8, 8) % 3 < 2
    alien = torch.arange(size) % 2 == 1
    return CorruptedBatch(images, torch.where(mask, noise, images), mask, alien, torch.arange(size))


def pairs(size, numbers, objective):
    images, others = 2.0 * torch.randn(2, size, 1, 8, 8, generator=numbers)
    tokens = torch.randint(5, 20, (size, 6), generator=numbers)
    words = torch.tensor([-1, 0, 0, 1, 2, -1]).expand(size, -1)
    places = (words == 0).expand(size, -1)
    masked, hidden = tokens.masked_fill(places, 4), tokens.masked_fill(~places, -100)
    lots = torch.rand(size, generator=numbers)
    own, false = torch.randint(1, 3, (2, size, 2), generator=numbers) * images.shape[2] // 2
    drawn = torch.rand(size, 2, 0, generator=numbers)
    return PairBatch(images, others, tokens, words, masked, hidden, lots, own, false, drawn)


def tabled(size, numbers, objective):
    images = 2.0 * torch.randn(size, 1, 4, 4, generator=numbers)
    return LossBatch(images, torch.rand(size, CLASSES, generator=numbers))


def boxes(size, numbers, objective):
    views = 2.0 * torch.randn(size, 2, 1, 4, 4, generator=numbers)
    first = 2.0 * torch.rand(size, 2, objective.count, 2, generator=numbers)
    valid = torch.arange(size) % 3 < 2  # not of all images
    return BoxesBatch(views, torch.cat([first, first + 2.0], 3), valid, torch.arange(size))


SEEN = {  # how it is made, and a network that it is for
    BoxesBatch: (boxes, mapped),
    CorruptedBatch: (corrupted, transformer),
    LabelledBatch: (labelled, classifier),
    LossBatch: (tabled, classifier),
    MultiCropBatch: (crops, classifier),
    MaskedBatch: (masked, transformer),
    MixedBatch: (mixed, attentive),
    PairBatch: (pairs, reader),
    SemiBatch: (semi, classifier),
    TilesBatch: (pretext, classifier),
    TurnedBatch: (pretext, classifier),
    ViewsBatch: (several_views, classifier),
    SoftBatch: (soft, classifier),
    VoxelBatch: (voxels, segmenter),
}


def batch(learner, size=5, seed=1):
    make, _ = SEEN[learner.objective.sees]
    return make(size, generator(seed), learner.objective)


def trained(learner, steps, start=0):
    """Train on and return all terms."""
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    step, seen = learning_step(learner), []
    for number in range(start, start + steps):
        seen.append(step(batch(learner, seed=number), number))
        optimizer.step()
        optimizer.zero_grad()
        learner.objective.after_step(learner.network, number)
    return seen


def same(first, second):
    """Check that two things with names and tensors are equal to the bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# The contract


@pytest.mark.parametrize("size", [1, 5])
def test_terms_are_finite_scalars_and_only_the_loss_has_gradient(case, size):
    whole = learner(case)
    for seed in (1, 2):
        terms = whole(batch(whole, size, seed), 3)
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.isfinite(), name
            assert term.requires_grad == (name == "loss"), name
        terms["loss"].backward()
        for name, parameter in whole.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_all_that_is_trained_moves_at_one_step_and_what_is_not_gets_no_gradient(case):
    whole = learner(case)
    before = copy.deepcopy(dict(whole.named_parameters()))
    learning_step(whole)(batch(whole), 3)
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert torch.equal(parameter, before[name]), name  # a teacher follows after the step
            assert parameter.grad is None, name
    for name, buffer in whole.named_buffers():
        assert buffer.grad_fn is None, name  # else the graphs of all steps would hang on it


def test_the_network_is_not_the_objectives_too(case):
    whole = learner(case)
    own = {id(parameter) for parameter in whole.network.parameters()}
    assert own.isdisjoint(map(id, whole.objective.parameters()))


def test_same_seed_same_terms(case):
    first, second = (trained(learner(case), 2) for _ in range(2))
    for terms, again in zip(first, second, strict=True):
        same(terms, again)


def test_a_run_restored_in_the_middle_goes_on_bit_for_bit(case):
    whole = learner(case)
    trained(whole, 3)
    state = decode(encode(whole.state_dict()))
    again = learner(case, seed=7)
    again.load_state_dict(state)
    for terms, twin in zip(trained(whole, 3, 3), trained(again, 3, 3), strict=True):
        same(terms, twin)
    same(whole.state_dict(), again.state_dict())


def test_it_pickles_in_the_middle_of_a_run(case):
    whole = learner(case)
    trained(whole, 2)
    again = pickle.loads(pickle.dumps(whole))
    for terms, twin in zip(trained(whole, 2, 2), trained(again, 2, 2), strict=True):
        same(terms, twin)


def test_a_float64_network_is_not_rounded(case):
    whole = learner(case).double()
    seen = batch(whole)
    doubled = (part.double() if part.is_floating_point() else part for part in seen)
    loss = whole(type(seen)(*doubled), 3)["loss"].detach()
    assert loss.dtype == torch.float64
    assert loss.float().double() != loss


def test_under_autocast_the_loss_is_summed_in_float32(case):
    whole = learner(case)
    terms = learning_step(whole, precision="bf16")(batch(whole), 3)
    assert terms["loss"].dtype == torch.float32
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.dtype == torch.float32 for p in whole.parameters() if p.requires_grad)


@pytest.mark.parametrize("answer", [True, False])
def test_a_step_on_cuda_has_nothing_on_the_cpu_and_waits_only_where_it_must(case, answer):
    table, row = case
    whole = learner(case)
    seen = batch(whole)
    with fake_cuda(answer=answer) as gpu:
        on_device, moved = gpu.moved(whole), type(seen)(*gpu.moved(tuple(seen)))
        terms = on_device(moved, 3)
        on_device.objective.after_step(on_device.network, 3)
        assert {term.device for term in terms.values()} == {CUDA}
        assert gpu.waits == WAITS.get(f"{table}/{row['name']}", [])


def test_what_waits_is_of_rows_that_there_are():
    assert WAITS.keys() <= {f"{table}/{row['name']}" for table, row in CASES.values()}
