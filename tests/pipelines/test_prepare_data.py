import ast
import gzip
import importlib.util
import inspect
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from raykb.assembly import Tasks
from raykb.data.colin27 import colin27
from raykb.data.datasets import DATASETS, SOURCES
from raykb.data.images import ImageSet
from raykb.data.options import Options

SCRIPT = Path(__file__).parents[2] / "pipelines" / "prepare_data.py"
PARTS = ("train", "test")
TEMPLATES = Path(inspect.signature(colin27).parameters["templates"].default)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def idx_root(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    root.mkdir()
    for seed, part in enumerate(("train", "t10k")):
        arrays = {
            "images-idx3": noise(seed, 20, 9, 7),
            "labels-idx1": np.arange(20, dtype="u1") % 2,
        }
        for name, array in arrays.items():
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            path = root / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return root


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for part in PARTS:
        for name, kind in (("cat", "jpg"), ("dog", "png")):
            (root / part / name).mkdir(parents=True)
            for seed in range(3):
                image = Image.fromarray(noise(seed, 10, 12, 3))
                image.save(root / part / name / f"{seed}.{kind}")
    return root


def shards(output: Path) -> tuple[ImageSet, ImageSet]:
    return DATASETS["parquet"](train=str(output / "train"), test=str(output / "test"))


def assert_same(made: ImageSet, expected: ImageSet) -> None:
    for name in ("images", "labels", "ids"):
        assert np.array_equal(getattr(made, name), getattr(expected, name)), name
    assert made.classes == expected.classes


def test_idx_files_come_back_equal(script: ModuleType, idx_root: Path, tmp_path: Path):
    names = ["even", "odd"]
    script.main(
        ["idx", str(tmp_path / "out"), "--root", str(idx_root), "--class-names", *names]
    )  # fmt: skip
    expected = DATASETS["idx"](root=str(idx_root), class_names=names)
    for made, other in zip(shards(tmp_path / "out"), expected, strict=True):
        assert_same(made, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_image_files_keep_their_bytes(script: ModuleType, image_root: Path, tmp_path: Path):
    script.main(["image_folder", str(tmp_path / "out"), "--root", str(image_root)])
    for part, made, other in zip(
        PARTS, shards(tmp_path / "out"), DATASETS["image_folder"](root=str(image_root)), strict=True
    ):
        assert_same(made, other)
        files = {path.read_bytes() for path in (image_root / part).rglob("*.*")}
        table = pq.read_table(tmp_path / "out" / part)
        assert set(table.column("image").to_pylist()) == files


def test_other_pixels_are_written_without_loss(
    script: ModuleType, image_root: Path, tmp_path: Path
):
    changed = ["--image-size", "6", "--channels", "1", "--classes", "dog"]
    script.main(["image_folder", str(tmp_path / "out"), "--root", str(image_root), *changed])
    expected = DATASETS["image_folder"](
        root=str(image_root), image_size=6, channels=1, classes=["dog"]
    )
    for made, other in zip(shards(tmp_path / "out"), expected, strict=True):
        assert_same(made, other)


def test_parquet_is_made_anew_from_a_draw(script: ModuleType, tmp_path: Path):
    sizes = ["--train-size", "100", "--test-size", "50", "--num-classes", "3", "--subset-seed", "2"]
    script.main(["fashion_mnist_sample", str(tmp_path / "one"), *sizes])
    given = ["--train", str(tmp_path / "one" / "train"), "--test", str(tmp_path / "one" / "test")]
    script.main(["parquet", str(tmp_path / "two"), *given])
    expected = DATASETS["fashion_mnist_sample"](
        train_size=100, test_size=50, num_classes=3, subset_seed=2
    )
    for name in ("one", "two"):
        for made, other in zip(shards(tmp_path / name), expected, strict=True):
            assert_same(made, other)


def test_the_config_it_prints_reads_what_it_wrote(
    script: ModuleType, idx_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script.main(["idx", str(tmp_path / "out"), "--root", str(idx_root)])
    printed = capsys.readouterr().out
    assert "20 training and 20 test images of 2 classes" in printed
    section = yaml.safe_load(printed[printed.index("data:") :])["data"]
    train, _ = DATASETS[section.pop("name")](**section)
    assert len(train) == 20


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="needs: apt-get install mricron-data")
def test_a_brain_becomes_a_task_that_the_config_it_prints_opens(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script.main(["colin27", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "2 labelled volumes of 9 labels" in printed
    section = yaml.safe_load(printed[printed.index("data:") :])["data"]
    (task,) = Tasks(**section).open(tmp_path)
    assert [case.name for case in task.training] == ["left", "right"]
    with pytest.raises(SystemExit, match=r"out: must be new or an empty folder"):
        script.main(["colin27", str(tmp_path / "out")])


def test_shards_are_closed_at_the_size_asked_for(script: ModuleType, tmp_path: Path):
    for part in PARTS:
        (tmp_path / "raw" / part / "a").mkdir(parents=True)
        for seed in range(5):
            image = Image.fromarray(noise(seed, 1450, 1450, 3))  # 6 MiB, as noise cannot be packed
            image.save(tmp_path / "raw" / part / "a" / f"{seed}.bmp")
    given = ["--root", str(tmp_path / "raw"), "--shard-mib", "16"]
    script.main(["image_folder", str(tmp_path / "out"), *given])
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out/train").iterdir())]
    assert rows == [3, 2]


def test_bad_images_stop_it_or_are_skipped(
    script: ModuleType,
    image_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    (image_root / "train" / "cat" / "1.jpg").write_bytes(b"broken")
    given = ["image_folder", str(tmp_path / "out"), "--root", str(image_root)]
    with pytest.raises(SystemExit, match=r"error: 1 of 6 images(?s:.*)cat/1\.jpg"):
        script.main(given)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    script.main([*given, "--on-bad-image", "skip"])
    assert [len(part) for part in shards(tmp_path / "out")] == [5, 6]
    assert "5 training and 6 test images" in capsys.readouterr().out
    assert "1 of 6 images" in caplog.text


def test_a_folder_that_holds_something_is_left_alone(
    script: ModuleType, idx_root: Path, tmp_path: Path
):
    output = tmp_path / "out"
    output.mkdir()
    script.main(["idx", str(output), "--root", str(idx_root)])  # an empty folder is welcome
    before = sorted(output.rglob("*"))
    with pytest.raises(SystemExit, match=r"out: must be new or an empty folder"):
        script.main(["idx", str(output), "--root", str(idx_root)])
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["idx", "out"], "required: --root"),
        (["idx", "out", "--root", "x", "--shard-mib", "8"], r"--shard-mib 8: must be in 16\.\.64"),
        (["mnist", "out"], "invalid choice: 'mnist'"),
        (["fashion_mnist_sample", "out", "--channels", "two"], "invalid int value: 'two'"),
    ],
)
def test_a_wrong_command_line_is_explained(
    script: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        script.main(arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["idx", "out", "--root", "nowhere"],
        ["cifar10", "out"],
        ["colin27", "out", "--templates", "nowhere"],
    ],
)
def test_data_that_is_missing_is_an_error_without_a_traceback(
    script: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    given = ["--no-download"] if arguments[0] == "cifar10" else []
    with pytest.raises(SystemExit, match="error: "):
        script.main([*arguments, *given])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_help_lists_the_arguments_of_each_set(
    script: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="0"):
        script.main([name, "--help"])
    printed = capsys.readouterr().out
    for option in inspect.signature(SOURCES[name]).parameters:
        assert f"--{option.replace('_', '-')}" in printed
    assert "--on-bad-image" in printed


def test_volumes_and_pairs_have_their_own_arguments(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
):
    own = {"colin27": "--templates TEXT", "emoji": "--count N"}
    assert own.keys() == set(script.MAKERS)
    for name, option in own.items():
        with pytest.raises(SystemExit, match="0"):
            script.main([name, "--help"])
        printed = capsys.readouterr().out
        assert option in printed
        assert "--shard-mib" not in printed


def test_what_is_read_of_the_data_sets_is_what_they_declare(script: ModuleType):
    nodes = {node.name: node for node in script.declared("datasets.py") if script.is_source(node)}
    assert nodes.keys() == SOURCES.keys()
    (options,) = script.declared("options.py")
    for node, function in [(options, Options), *((nodes[name], SOURCES[name]) for name in SOURCES)]:
        assert ast.get_docstring(node) == inspect.getdoc(function)
        declared = inspect.signature(function).parameters
        read = list(script.parameters(node))
        assert [name for name, _, _ in read] == list(declared)
        for name, annotation, default in read:
            known = declared[name]
            assert eval(ast.unparse(annotation)) == known.annotation
            assert (default is None) == (known.default is inspect.Parameter.empty)
            assert default is None or ast.literal_eval(default) == known.default


@pytest.mark.parametrize("writes", [1, 2])  # killed in the first shard, and after it
def test_killed_while_writing_it_leaves_nothing_that_loads(
    script: ModuleType, writes: int, idx_root: Path, tmp_path: Path
):
    given = ["idx", str(tmp_path / "out"), "--root", str(idx_root)]
    killer = (
        "import os, runpy, signal, stat, sys\n"
        f"left = iter(range({writes - 1}, -1, -1))\n"
        "is_file = lambda file: stat.S_ISREG(os.fstat(file).st_mode)\n"
        "killed = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = lambda file: not is_file(file) or next(left) or killed()\n"
        "sys.argv.pop(0)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    killed = subprocess.run(
        [sys.executable, "-c", killer, str(SCRIPT), *given], capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (partial,) = tmp_path.glob(".out.*")
    half = partial / PARTS[writes - 1]
    (begun,) = half.iterdir()
    assert re.fullmatch(r"\.00000\.parquet\.[0-9a-f]{32}\.tmp", begun.name)
    with pytest.raises(FileNotFoundError):
        DATASETS["parquet"](train=str(half), test=str(half))
    script.main(given)
    assert [len(part) for part in shards(tmp_path / "out")] == [20, 20]
