"""The training that each worker of a pipeline builds, resumed with other numbers of stages."""

import dataclasses
import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raykb.config import build
from raykb.data.batches import LabelledImages
from raykb.data.datasets import DATASETS
from raykb.data.views import CropFlipView
from raykb.engine.loop import Worker, fit
from raykb.engine.objective import CrossEntropy, Task
from raykb.engine.recipe import Lengths, Recipe
from raykb.gpipe.costs import measure
from raykb.models import SEQUENTIALS
from raykb.runtime.saving import Checkpoints
from raykb.runtime.stage_training import Source, stage_training
from raykb.runtime.stages import PipelineSettings, layers_of
from raykb.runtime.storage import open_storage

SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 0.0005}
ADAM = {"name": "adamw", "lr": 0.002, "weight_decay": 0.01}
STEPS = 6


def trained(
    folder,
    settings,
    *,
    optimizer=SGD,
    epochs=3,
    steps=STEPS,
    save_every=0,
    evaluate_every=0,
    model=None,
    **recipe,
) -> tuple[list[float], dict[str, float], dict[str, torch.Tensor]]:
    """Train in this process's group; return each step's loss, the metrics and the own weights."""
    train, test = build(
        DATASETS, {"name": "fashion_mnist_sample", "train_size": 50, "test_size": 30}
    )
    length = {"epochs": epochs, "steps": None if epochs else steps}
    recipe = Recipe(**length | {"batch_size": 20, "keep_last": True} | recipe)
    network = functools.partial(
        build, SEQUENTIALS, model or {"name": "small_resnet_sequential", "width": 4},
        classes=10, channels=1,
    )  # fmt: skip
    sample = torch.zeros(5, 1, 28, 28, device="meta")
    costs = measure(layers_of(network, 0), sample, seed=0, timeout=0.0)
    view = CropFlipView(mean=(0.286,), std=(0.353,), padding=2, flip=True, cutout=0)
    worker = Worker(dist.get_rank(), dist.get_world_size())
    storage = open_storage(str(folder))
    lengths = Lengths(steps, 1, save_every, log_every=1, evaluate_every=evaluate_every)
    training = stage_training(
        worker,
        network=network,
        objective=CrossEntropy(Task(nn.Identity(), steps, 10)),
        source=Source(
            LabelledImages,
            {"train": train, "test": test, "view": view, "recipe": recipe, "seed": 3},
        ),
        lengths=lengths,
        recipe=recipe,
        settings=settings,
        costs=costs,
        optimizer=optimizer,
        schedule={"name": "constant"},
        seed=3,
        uri=storage.uri,
    )
    checkpoints = Checkpoints(storage, worker, lambda step: None)
    start = checkpoints.restore(training)
    losses, on_the_way = [], {}

    def log(step, figures):
        if "train/loss" in figures:
            losses.append(figures["train/loss"])
        else:
            on_the_way[f"step {step}"] = figures

    fit(
        training,
        start=start,
        log=log,
        save=functools.partial(checkpoints.save, training),
    )
    metrics = training.evaluate("test").figures | on_the_way
    return losses, metrics, training.parts["model"].state_dict()


TWO = PipelineSettings(stages=2, micro_batches=4, balance="parameters")


@pytest.fixture(scope="module")
def plain(gloo, tmp_path_factory):
    """What an uninterrupted run of two stages by SGD comes to, with whom others are compared."""
    return whole(gloo.run(trained, tmp_path_factory.mktemp("plain"), TWO, size=2))


def whole(by_rank):
    """Return losses, metrics and the whole model's weights."""
    weights = {}
    for _, _, own in by_rank:
        weights |= own
    return by_rank[0][0], by_rank[0][1], weights


@pytest.mark.parametrize(
    ("optimizer", "later"), [(SGD, (3,)), (ADAM, (2, 3, 1))], ids=["sgd", "adam"]
)
def test_a_run_goes_on_with_another_number_of_stages(gloo, plain, tmp_path, optimizer, later):
    call = functools.partial(trained, optimizer=optimizer)
    losses, metrics, weights = (
        plain if optimizer is SGD else whole(gloo.run(call, tmp_path / "whole", TWO, size=2))
    )
    half = functools.partial(call, steps=3, save_every=3)
    gloo.run(half, tmp_path / "half", TWO, size=2)
    for stages in later:
        folder = tmp_path / f"on-{stages}"
        copy_tree(tmp_path / "half", folder)
        settings = dataclasses.replace(TWO, stages=stages)
        rest, found, ended = whole(gloo.run(call, folder, settings, size=stages))
        exact = 0 if stages == 2 else 1e-6
        assert rest == pytest.approx(losses[3:], abs=exact), stages
        assert found["test/loss"] == pytest.approx(metrics["test/loss"], abs=10 * exact)
        assert ended.keys() == weights.keys()


def copy_tree(source, destination):
    for file in source.rglob("*"):
        if file.is_file():
            place = destination / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())


def test_the_weights_load_into_the_plain_model(gloo, tmp_path):
    settings = PipelineSettings(stages=2, micro_batches=4, balance=[11, 20])
    _, metrics, weights = whole(gloo.run(trained, tmp_path, settings, size=2))
    model = build(
        SEQUENTIALS, {"name": "small_resnet_sequential", "width": 4}, classes=10, channels=1
    )
    model.load_state_dict(weights, strict=True)
    _, test = build(DATASETS, {"name": "fashion_mnist_sample", "train_size": 50, "test_size": 30})
    view = CropFlipView(mean=(0.286,), std=(0.353,), padding=2, flip=True, cutout=0)
    model.eval()
    with torch.no_grad():
        logits = model(view.plain(torch.from_numpy(test.images)))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(test.labels))
    assert metrics["test/loss"] == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("model", ["small_resnet_sequential", "small_convnet"])
def test_replicas_share_batches_of_any_size(gloo, tmp_path, model):
    """Two replicas of two stages see what one pipeline sees; the last batch has 9 samples."""
    section = {"name": model, "width": 4}
    section |= {"dropout": 0.0} if model == "small_resnet_sequential" else {}
    call = functools.partial(trained, model=section, batch_size=41, steps=4, clip_norm=None)
    one = PipelineSettings(stages=2, micro_batches=1, schedule="gpipe", balance="parameters")
    many = dataclasses.replace(one, replicas=2)
    alone, _, _ = whole(gloo.run(call, tmp_path / "one", one, size=2))
    shared, metrics, _ = whole(gloo.run(call, tmp_path / "two", many, size=4))
    # batch norm normalises by what a replica has, so losses are near, not equal
    assert shared == pytest.approx(alone, rel=0.2)
    assert 0.0 <= metrics["test/top1"] <= 1.0


def test_evaluations_on_the_way_are_of_all_test_images_and_change_nothing(gloo, plain, tmp_path):
    losses, metrics, weights = plain
    call = functools.partial(trained, evaluate_every=3, epochs=None)
    again, found, same = whole(gloo.run(call, tmp_path / "looked at", TWO, size=2))
    assert again == losses
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    assert found["step 6"] == {
        name.replace("test/", "valid/"): metrics[name] for name in ("test/loss", "test/top1")
    }
    assert found["step 3"] != found["step 6"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(gloo, plain, tmp_path, precision):
    full, _, _ = plain
    call = functools.partial(trained, precision=precision)
    mixed, metrics, _ = whole(gloo.run(call, tmp_path / "mixed", TWO, size=2))
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.05)
    steps = metrics["test/loss"] * 30 / 2**-6  # of bf16 between 2 and 4, over 30 images
    assert abs(steps - round(steps)) > 1e-2  # the loss itself is in full precision


def test_an_elastic_run_goes_on_with_what_its_schedule_can_run():
    settings = PipelineSettings(
        stages=8, stages_per_worker=2, schedule="interleaved", micro_batches=4, elastic=True
    )
    assert settings.group.fewer == (1, 2, 3)
    nine = dataclasses.replace(settings, stages=6, micro_batches=9, replicas=2)
    assert nine.group.fewer == (2,)  # two workers would take 9 in 4 rounds


def test_the_figures_of_a_run_name_its_pipeline(gloo, tmp_path):
    settings = PipelineSettings(
        stages=2, micro_batches=4, schedule="gpipe", checkpoint="always", balance="parameters"
    )
    _, metrics, _ = whole(gloo.run(trained, tmp_path, settings, size=2))
    assert metrics["pipeline/bubble"] == pytest.approx(4 / 5)
    assert 0 < metrics["pipeline/balance"] <= 1
    assert 0 < metrics["pipeline/runtime"] <= 1.05
    assert metrics["memory/worker-1/peak_mib"] >= 0
    assert (tmp_path / "spans.json").exists()
