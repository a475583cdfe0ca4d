"""What a script says of files that were made to hurt: a line, no traceback, nothing that steers."""

import json

import in_process
import numpy as np
import pytest

from raykb.data.decoding import encode_png
from raykb.data.parquet import write_shards
from raykb.engine.foreign import printable

PICTURE = encode_png(np.zeros((3, 8, 8), np.uint8))
DEEP = "[" * 5000 + "]" * 5000
ESCAPE = "a\x1b[2Jb\nc"


def of_classes(folder):
    """A class that clears the screen."""
    for part in ("train", "test"):
        (folder / part / ESCAPE).mkdir(parents=True)
        (folder / part / ESCAPE / "a.png").write_bytes(PICTURE)
    return (
        "train",
        ["--set", f"data={{name: image_folder, root: {folder}}}"],
        "1 classes have names",
    )


def of_images(folder):
    """An image that is none, of a name that clears the screen."""
    for part in ("train", "test"):
        (folder / part / "cat").mkdir(parents=True)
        (folder / part / "cat" / f"{ESCAPE}.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    return "train", ["--set", f"data={{name: image_folder, root: {folder}}}"], "images cannot be us"


def of_paths(folder):
    """A path that clears the screen."""
    path = json.dumps(str(folder / ESCAPE))
    return "train", ["--set", f"data={{name: image_folder, root: {path}}}"], "must hold the folders"


def of_shards(folder):
    """Shards whose metadata are deep, and a file that is none."""
    write_shards(folder / "train", [(0, PICTURE, 0)], ["n" * 300])
    paths = f"train: {folder / 'train'}, test: {folder / 'train'}"
    return "train", ["--set", f"data={{name: parquet, {paths}}}"], "of more than 200 signs"


def of_a_policy(folder):
    """A policy that is deep."""
    (folder / "policy.json").write_text(DEEP)
    rival = f"{{name: policy, policy: {folder / 'policy.json'}}}"
    return "fastaa_search", ["--set", f"comparison.rivals={{deep: {rival}}}"], "more than 32 levels"


def of_a_config(folder):
    """A configuration that laughs."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (folder / "run.yaml").write_text("\n".join(lines))
    return "train", ["--config", folder / "run.yaml"], "more than 10,000 values"


def of_a_run(folder):
    """A run directory whose record is deep."""
    (folder / "run.json").write_text(DEEP)
    return "semi_train", ["--resume", folder], "more than 32 levels"


def of_a_vocabulary(folder):
    """A vocabulary without end."""
    with (folder / "vocab.txt").open("wb") as file:
        file.truncate(2**40)
    return "vilt", ["--set", f"captions.vocabulary={folder / 'vocab.txt'}"], "more than 16777216 by"


def of_a_task(folder):
    """A list of cases that names a file elsewhere."""
    said = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": "../../../etc/passwd", "label": "a.nii"}],
    }
    (folder / "Task01_Small").mkdir()
    (folder / "Task01_Small" / "dataset.json").write_text(json.dumps(said))
    return "decathlon", ["--set", f"data.root={folder}"], "must be a file in"


FILES = [of_classes, of_images, of_paths, of_shards, of_a_policy, of_a_config, of_a_run]
FILES += [of_a_vocabulary, of_a_task]


@pytest.mark.parametrize("write", FILES)
def test_a_script_refuses_hostile_files_in_words(tmp_path, write):
    (tmp_path / "files").mkdir()
    script, arguments, told = write(tmp_path / "files")
    done = in_process.run(script, tmp_path, *arguments, status=2)
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout + done.stderr == printable(done.stdout + done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]  # no run began
