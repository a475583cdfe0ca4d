"""Every configuration is right and short, and its smoke run ends, in this process."""

import json
import runpy

import here
import pytest
import running
import torch
import torch.distributed as dist
import yaml

from raykb import config as configuration
from raykb.config import build
from raykb.models import MODELS, PREDICTORS, SEGMENTERS, SEQUENTIALS

SCRIPTS = {
    "augment": "fastaa_search",
    "gpipe": "gpipe_train",
    "segmentation": "decathlon",
    "nas": "nas_search",
    "recognition": "train",
    "selfsup": "pretrain",
    "semi": "semi_train",
    "tta": "tta",
}
CONFIGS = sorted((running.PIPELINES / "configs").glob("*/*.yaml"))
LONG = "gpipe_imagenet_resnet101"  # 370 layers, half a minute
HERE = {  # what a run in one process has otherwise
    "semi": ["stream={name: in_place}"],
    "gpipe": ["pipeline.stages=1", "pipeline.balance=time"],
}
ids = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def room_of(path):
    """Return whose script a file is for: its folder's, unless it begins with another's name."""
    return "tta" if path.stem.startswith("tta_") else path.parent.name


def rehearsals():
    """Return all files; of those with one smoke section, all but the first are marked slow."""
    sections = [(path.parent, yaml.safe_load(path.read_text())["smoke"]) for path in CONFIGS]
    slow = [path.stem == LONG or sections[n] in sections[:n] for n, path in enumerate(CONFIGS)]
    return [
        pytest.param(path, marks=pytest.mark.slow if late else ())
        for path, late in zip(CONFIGS, slow, strict=True)
    ]


@pytest.fixture(scope="module")
def scripts():
    """Each script as a module, made once."""
    return {
        room: runpy.run_path(str(running.PIPELINES / f"{name}.py"))
        for room, name in SCRIPTS.items()
    }


@pytest.fixture(scope="module")
def alone():
    """A process group of this process alone, as a pipeline of one worker has it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def leaves(part):
    if isinstance(part, dict) and part:
        return sum(leaves(value) for value in part.values())
    return 1


@ids
def test_a_configuration_is_right_without_its_smoke_part_and_says_no_more_than_it_must(
    scripts, path
):
    script = scripts[room_of(path)]
    here.resolved(script, path, smoke=False)
    written = yaml.safe_load(path.read_text())
    written.pop("smoke")
    assert leaves(written) - leaves(written.get("comparison", {}).get("rivals", {})) <= 40


@pytest.mark.parametrize("room", SCRIPTS)
def test_every_default_of_a_script_can_be_written_in_a_file(scripts, room):
    assert configuration.unwritable(scripts[room]["SCHEMA"]) == []


@pytest.mark.parametrize("path", rehearsals(), ids=lambda path: path.stem)
def test_a_smoke_run_ends_with_results_pictures_and_weights(scripts, alone, tmp_path, path, capsys):
    room = room_of(path)
    config = here.resolved(scripts[room], path, *HERE.get(room, []))
    session = here.run(scripts[room], SCRIPTS[room], config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    finals = sorted(tmp_path.rglob("final.pt"))
    assert set(session.written) <= {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    if room == "gpipe":
        assert {"test/loss", "test/top1"} <= results["metrics"].keys()
        assert "timeline.png" in session.written
    else:
        labels = [*config["comparison"]["rivals"], results["subject"]]
        each, pictures = config["comparison"]["seeds"], {"comparison.png"}
        if room == "segmentation":
            tasks = dict.fromkeys(row["task"] for row in results["results"])
            each *= len(tasks) * config["folds"]["splits"]
            pictures = {f"{task}.png" for task in tasks}
        if room == "recognition":
            pictures |= {"curves.png", "confusion.png"}
        if room == "selfsup":  # initial weights stand beside what was trained
            labels = ["random", *labels]
            pictures |= {"probe.png"} | {f"neighbours_{label}.png" for label in labels}
        if room == "tta":  # beside predictors stand ways to choose without one, or more
            labels = list(dict.fromkeys(row["label"] for row in results["results"]))
            assert {"identity", "oracle", *config["comparison"]["rivals"]} < {*labels}
            pictures |= {"chosen.png", "corruptions.md"}
        if room == "nas":  # what was found is in the table, and the best of it is the subject
            found = json.loads((tmp_path / "genotypes.json").read_text())["genotypes"]
            stopped = {row["label"] for row in results["stopped"]}  # at a rung
            mean = [] if any("random" in label for label in stopped) else ["random"]
            labels = [*(label for label in found if label not in stopped), *labels[:-1], *mean]
            results["results"].sort(key=lambda row: labels.index(row["label"]))
            pictures |= {"cells.png", "searches.png", "genotype.json"}
        assert list(dict.fromkeys(row["label"] for row in results["results"])) == labels
        assert len(results["results"]) == len(labels) * each
        assert results["missing"] == []
        assert {"results.md"} | pictures <= set(session.written)
        assert (tmp_path / "results.md").read_text().strip() in capsys.readouterr().out
    weights, tables = torch.load(finals[-1], weights_only=True), MODELS | SEQUENTIALS | SEGMENTERS
    classes = len(config["data"].get("classes") or range(10))
    channels = config["data"].get("channels") or 1
    if room == "segmentation":  # the plan decides part of the network, and the training has all
        config, classes = json.loads((finals[-1].parent / "config.json").read_text()), 2
    if room == "tta":  # of a predictor, which tells transformations apart
        finals = sorted(tmp_path.rglob("same_fifteen/*/final.pt"))
        weights, classes, tables = torch.load(finals[-1], weights_only=True), 12, PREDICTORS
    if room == "nas":  # a rival, whose config stands beside it; of brains
        finals = sorted(tmp_path.rglob("unet_3d/*/final.pt"))
        config, classes = json.loads((finals[-1].parent / "config.json").read_text()), 4
        weights, channels = torch.load(finals[-1], weights_only=True), 4
    model = build(tables, config["model"], classes=classes, channels=channels)
    model.load_state_dict(weights)
