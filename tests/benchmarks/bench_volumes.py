"""Crops per second from mapped shards against nibabel on the files that they were made of.

    python tests/benchmarks/bench_volumes.py --size 128 256 256 --patch 32 64 64

All rivals cut the same boxes out of the same volumes, one after another in each round, and what
they cut is compared once. ``.nii.gz whole`` unpacks the file and crops; ``.nii.gz slice`` asks
nibabel for the box alone; ``view`` is a training's patch, image and label, with its place drawn,
and ``augmented`` by nnU-Net's whole set, which needs more of the volume around. For ``cold`` the
system drops the shard's pages from its cache before each crop.
"""

import argparse
import functools
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage

from raykb.data.decathlon import Case, DecathlonTask
from raykb.data.nifti import Geometry, write_nifti
from raykb.data.volume_augmentations import NNUNetAugmentation
from raykb.data.volume_views import PatchView
from raykb.data.volumes import Volumes, crop, open_volumes

SPACING = np.diag([0.8, 0.8, 2.5, 1.0])
Start = tuple[int, int, int]  # Z, Y and X


def write_volumes(folder: Path, count: int, shape: Start) -> DecathlonTask:
    """Write volumes of smooth tissue under noise, which pack about as well as a CT does."""
    z, y, x = shape
    geometry, cases = Geometry((x, y, z), SPACING), []
    for number in range(count):
        draw = np.random.default_rng(number)
        coarse = draw.normal(0, 400, (z // 8 + 1, y // 8 + 1, x // 8 + 1))
        smooth = ndimage.zoom(coarse, 8, order=1)[:z, :y, :x]
        image = (smooth + draw.normal(0, 15, shape)).astype(np.int16)
        case = Case(
            f"volume_{number}", *(folder / f"{n}_{number}.nii.gz" for n in ("image", "label"))
        )
        write_nifti(case.image, image[None], geometry)
        write_nifti(folder / f"image_{number}.nii", image[None], geometry)
        write_nifti(folder / f"label_{number}.nii.gz", smooth > 500, geometry)
        cases.append(case)
    return DecathlonTask("Bench", folder, ("CT",), ("background", "bright"), tuple(cases), ())


def whole(task: DecathlonTask, ending: str, number: int, box: tuple[slice, ...]) -> np.ndarray:
    image = nibabel.load(task.folder / f"image_{number}{ending}")
    return np.asanyarray(image.dataobj)[..., 0].T[box]


def part(task: DecathlonTask, ending: str, number: int, box: tuple[slice, ...]) -> np.ndarray:
    image = nibabel.load(task.folder / f"image_{number}{ending}")
    return image.dataobj[(*box[::-1], 0)].T


def shard(volumes: Volumes, number: int, box: tuple[slice, ...]) -> np.ndarray:
    out = np.empty([side.stop - side.start for side in box], np.int16)
    crop(volumes.cases[number].image[0], [side.start for side in box], out)
    return out


def cold(volumes: Volumes, number: int, box: tuple[slice, ...]) -> np.ndarray:
    volumes.cases[number].image._mmap.madvise(mmap.MADV_DONTNEED)  # else they are held
    with (volumes.cases[number].folder / "image.npy").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return shard(volumes, number, box)


def viewed(view: PatchView, epochs: list[int], number: int, box: tuple[slice, ...]) -> None:
    epochs[0] += 1
    ids = np.array([number])
    view.finish(view.train({"cases": torch.from_numpy(ids)}, ids, 0, epochs[0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=3, default=(128, 256, 256), metavar=tuple("ZYX"))
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 64, 64), metavar=tuple("ZYX"))
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--crops", type=int, default=8, help="of each rival in a round")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, nibabel {nibabel.__version__}, numpy {np.__version__}; "
        f"{args.volumes} volumes of {args.size} int16, crops of {args.patch}; ms per crop, least "
        f"and median of {args.repeats} rounds of {args.crops}, interleaved"
    )
    with tempfile.TemporaryDirectory() as made:
        measure(args, Path(made))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def measure(args: argparse.Namespace, folder: Path) -> None:
    task = write_volumes(folder, args.volumes, tuple(args.size))
    began = time.perf_counter()
    volumes = open_volumes(task, folder / "shards")
    packed = sum(case.image.stat().st_size for case in task.training) / 2**20
    print(
        f"shards of {args.volumes} cases ({packed:.0f} MiB of .nii.gz) made in "
        f"{time.perf_counter() - began:.2f} s"
    )
    cropping: dict[str, Callable[[int, tuple[slice, ...]], np.ndarray]] = {
        ".nii.gz whole": functools.partial(whole, task, ".nii.gz"),
        ".nii.gz slice": functools.partial(part, task, ".nii.gz"),
        ".nii slice": functools.partial(part, task, ".nii"),
        "shard": functools.partial(shard, volumes),
        "shard, cold": functools.partial(cold, volumes),
    }
    size = tuple(args.patch)
    whole_set = NNUNetAugmentation(size=size, spacing_mm=volumes.cases[0].spacing_mm)
    views = {
        "view": PatchView(volumes, size),
        "view, augmented": PatchView(volumes, size, augmentation=whole_set),
    }
    rivals = cropping | {name: functools.partial(viewed, of, [0]) for name, of in views.items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    draw = np.random.default_rng(0)
    for repeat in range(args.repeats + 1):
        boxes = [place(draw, args) for _ in range(args.crops)]
        if not repeat:  # the first round warms up, and shows that all cut the same
            for number, box in boxes:
                cuts = [np.ascontiguousarray(rival(number, box)) for rival in cropping.values()]
                assert all(np.array_equal(cuts[0], cut) for cut in cuts)
        for name, rival in rivals.items():
            began = time.perf_counter()
            for number, box in boxes:
                rival(number, box)
            if repeat:
                times[name].append((time.perf_counter() - began) / args.crops)
    print(f"{'':16s}{'median ms':>12s}{'least ms':>12s}{'crops/s':>12s}{'shard is faster':>18s}")
    ours = times["shard"]
    for name, values in times.items():
        middle = statistics.median(values)
        ratio = statistics.median(v / o for v, o in zip(values, ours, strict=True))
        print(
            f"{name:16s}{middle * 1e3:12.3f}{min(values) * 1e3:12.3f}{1 / middle:12.0f}"
            f"{ratio:17.1f}x"
        )


def place(draw: np.random.Generator, args: argparse.Namespace) -> tuple[int, tuple[slice, ...]]:
    """Return a volume and a box in it."""
    starts = [
        int(draw.integers(most - side + 1))
        for most, side in zip(args.size, args.patch, strict=True)
    ]
    box = tuple(slice(s, s + side) for s, side in zip(starts, args.patch, strict=True))
    return int(draw.integers(args.volumes)), box


if __name__ == "__main__":
    main()
