"""What each operation costs per image, batched here and one at a time in Pillow.

python tests/benchmarks/bench_operations.py --images 2000 --threads 1
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from raykb.data.operations import OPERATIONS, apply_operation


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def cutout(image: Image.Image, v: float) -> Image.Image:
    image, side = image.copy(), v * image.width
    left, top = 0.4 * image.width, 0.4 * image.height
    fill = (125, 123, 114) if image.mode == "RGB" else 123
    ImageDraw.Draw(image).rectangle((left, top, left + side, top + side), fill)
    return image


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    "TranslateX": lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0),
    "TranslateY": lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height),
    "Rotate": lambda image, v: image.rotate(v),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Solarize": lambda image, v: ImageOps.solarize(image, v),
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "Cutout": cutout,
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(times: list[float], images: int) -> str:
    micro = [t / images * 1e6 for t in times]
    return f"{statistics.median(micro):8.2f} ({min(micro):.2f}-{max(micro):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pillow-images", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=(32, 32), metavar=("H", "W"))
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; Pillow runs on one")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(OPERATIONS), default=list(OPERATIONS))
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    g = torch.Generator().manual_seed(0)
    shape = (args.images, args.channels, *args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    arrays = images[: args.pillow_images].permute(0, 2, 3, 1).numpy()
    arrays = np.ascontiguousarray(arrays if args.channels == 3 else arrays[..., 0])
    pillows = [Image.fromarray(array) for array in arrays]

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__} on {args.threads} thread(s), Pillow {PIL.__version__}; "
        f"{args.images} images of {args.channels} x {args.size[0]} x {args.size[1]}; "
        f"us per image, median (range) of {args.repeats}, interleaved"
    )
    print(f"{'operation':14s}{'raykb':>26s}{'Pillow':>28s}{'ratio':>8s}")
    ours: dict[str, list[float]] = {name: [] for name in args.only}
    theirs: dict[str, list[float]] = {name: [] for name in args.only}
    for repeat in range(args.repeats + 1):
        for name in args.only:
            level = torch.rand(args.images, dtype=torch.float64, generator=g)
            values = OPERATIONS[name].magnitude(level)
            pairs = list(zip(pillows, values.tolist(), strict=False))
            batched = seconds(lambda: apply_operation(images, name, values))  # noqa: B023
            single = seconds(lambda: [PILLOW[name](i, v) for i, v in pairs])  # noqa: B023
            if repeat:  # the first round warms up
                ours[name].append(batched / args.images)
                theirs[name].append(single / len(pairs))
    for name in args.only:
        ratio = statistics.median(theirs[name]) / statistics.median(ours[name])
        print(f"{name:14s}{spread(ours[name], 1):>26s}{spread(theirs[name], 1):>28s}{ratio:8.1f}")
    total = [sum(column) / len(args.only) for column in zip(*ours.values(), strict=True)]
    single = [sum(column) / len(args.only) for column in zip(*theirs.values(), strict=True)]
    print(f"{'mean':14s}{spread(total, 1):>26s}{spread(single, 1):>28s}")


if __name__ == "__main__":
    main()
