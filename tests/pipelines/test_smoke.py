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
from raykb.models import IMAGE_TEXT, MODELS, PREDICTORS, SEGMENTERS, SEQUENTIALS

SCRIPTS = {
    "anytime": "autoclint",
    "augment": "fastaa_search",
    "gpipe": "gpipe_train",
    "segmentation": "decathlon",
    "nas": "nas_search",
    "pairs": "vilt",
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


def stands_in(written):
    """Return whether a file's smoke run has other data than the file names."""
    data, smoke = written["data"], written["smoke"].get("data", {})
    return any(key in smoke and smoke[key] != data.get(key) for key in ("name", "root"))


def room_of(path):
    """Return whose script a file is for: its folder's, unless it begins with another's name."""
    return "tta" if path.stem.startswith("tta_") else path.parent.name


def rehearsals():
    """Return all files; marked slow are the long one, those whose smoke run has stand-ins for what
    they name, and of those with one smoke section all but the first.
    """
    texts = [yaml.safe_load(path.read_text()) for path in CONFIGS]
    parts = [(path.parent, text["smoke"]) for path, text in zip(CONFIGS, texts, strict=True)]
    return [
        pytest.param(
            path,
            marks=pytest.mark.slow
            if path.stem == LONG or stands_in(texts[n]) or parts[n] in parts[:n]
            else (),
        )
        for n, path in enumerate(CONFIGS)
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


def leaves(part, seen):
    """Return how many values are written; what an alias names was written once."""
    if not isinstance(part, dict) or not part:
        return 1
    if id(part) in seen:
        return 1
    seen.add(id(part))
    return sum(leaves(value, seen) for value in part.values())


@ids
def test_a_configuration_is_right_without_its_smoke_part_and_says_no_more_than_it_must(
    scripts, path
):
    script = scripts[room_of(path)]
    here.resolved(script, path, smoke=False)
    written = yaml.safe_load(path.read_text())
    written.pop("smoke")
    sections = [written.get(name, {}) for name in ("comparison", "replicas")]
    rivals = sum(leaves(own["rivals"], set()) for own in sections if "rivals" in own)
    assert leaves(written, set()) - rivals <= 28


STAND_INS = [path for path in CONFIGS if stands_in(yaml.safe_load(path.read_text()))]


@pytest.mark.parametrize("path", STAND_INS, ids=lambda path: path.stem)
def test_what_runs_in_the_slow_tests_can_be_built(scripts, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    script = scripts[room_of(path)]
    ready = script["prepare"](here.resolved(script, path))
    assert all(phase.units > 0 for phase in ready.phases)


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
        if room == "pairs":
            pictures |= {f"found_{label}.png" for label in labels} | {"aligned_vilt.png"}
        if room == "recognition":
            pictures |= {"curves.png", "confusion.png"}
        if room == "selfsup":  # initial weights stand beside what was trained
            labels = ["random", *labels]
            pictures |= {"probe.png"} | {f"neighbours_{label}.png" for label in labels}
        if room == "anytime":
            pictures |= {"curves.png"}
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
    weights = torch.load(finals[-1], weights_only=True)
    classes = len(config["data"].get("classes") or range(10))
    channels = config["data"].get("channels") or 1
    if room == "segmentation":  # the plan decides part of the network, and the training has all
        config, classes = json.loads((finals[-1].parent / "config.json").read_text()), 2
    if room == "pairs":  # the emoji's categories
        classes, channels = 8, 3
    if room == "tta":  # of a predictor, which tells transformations apart
        finals = sorted(tmp_path.rglob("same_fifteen/*/final.pt"))
        weights, classes = torch.load(finals[-1], weights_only=True), 12
    if room == "nas":  # a rival, whose config stands beside it; of brains
        finals = sorted(tmp_path.rglob("unet_3d/*/final.pt"))
        config, classes = json.loads((finals[-1].parent / "config.json").read_text()), 4
        weights, channels = torch.load(finals[-1], weights_only=True), 4
    if room == "anytime":
        weights = {
            name.removeprefix("backbone."): value
            for name, value in weights.items()
            if name.startswith("backbone.")
        }
        channels = 3  # a backbone takes colour, whatever the data have
    tables = MODELS | SEQUENTIALS | SEGMENTERS | IMAGE_TEXT | PREDICTORS
    model = build(tables, config["model"], classes=classes, channels=channels)
    model.load_state_dict(weights)
