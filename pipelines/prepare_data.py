"""Turn any data set into Parquet shards that every pipeline reads."""

import argparse
import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

if importlib.util.find_spec("raykb") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from raykb.data.datasets import SOURCES
from raykb.data.decoding import BadImageError, Encoded, decode_all, encode_png
from raykb.data.loading import check_bad_images
from raykb.data.options import Options
from raykb.data.parquet import write_shards
from raykb.data.records import Records

USAGE = """
A shard has the columns id (int64), image (the bytes of an image file) and label (int64), and the
names of the classes in its metadata. Image files keep their bytes unless --image-size or
--channels asks for other pixels; pixels are written as PNG, without loss. The output folder
appears when all of it is written, never before.

examples:
  prepare_data.py fashion_mnist out/fashion --root /usr/share/datasets/fashion-mnist
  prepare_data.py idx out/mnist --root raw/mnist
  prepare_data.py cifar10 out/reduced-cifar10 --train-size 4000
  prepare_data.py image_folder out/flowers --root photos --test-fraction 0.2 --image-size 64
  prepare_data.py image_folder --help
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; those of a data set are its function's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(dest="name", metavar="SET", required=True)
    for name, source in SOURCES.items():
        text = inspect.getdoc(source) or ""
        command = sets.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            epilog=inspect.getdoc(Options),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("output", type=Path, help="folder to make; must not hold anything")
        command.add_argument(
            "--shard-mib", type=int, default=32, help="size of a shard, 16 to 64 (default: 32)"
        )
        for function in (source, Options):
            for parameter in inspect.signature(function).parameters.values():
                add_option(command, parameter)
    namespace = parser.parse_args(arguments)
    if not 16 <= namespace.shard_mib <= 64:
        parser.error(f"--shard-mib {namespace.shard_mib}: must be in 16..64")
    return namespace


def add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    """Make ``--image-size N`` of ``image_size: int | None = None``, and so on."""
    kinds = [k for k in get_args(parameter.annotation) or (parameter.annotation,) if k != NoneType]
    required = parameter.default is inspect.Parameter.empty
    option: dict[str, Any] = {"required": required}
    if bool in kinds:
        option["action"] = argparse.BooleanOptionalAction
    elif any(get_origin(kind) is list for kind in kinds):
        option |= {"nargs": "+", "metavar": "TEXT"}
    else:
        option |= {"type": kinds[0], "metavar": {int: "N", float: "X"}.get(kinds[0], "TEXT")}
    if not required:
        option |= {"default": parameter.default, "help": f"(default: {parameter.default})"}
    parser.add_argument("--" + parameter.name.replace("_", "-"), **option)


def rows(records: Records, options: Options, part: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield id, image file and label of all records whose image can be decoded.

    Raises:
        ValueError: at the end, if there were images that could not and none may be skipped.
    """
    bad: list[str] = []
    images = iter(records.read(records.rows))
    position = 0
    with tqdm(total=len(records), desc=part, unit="image") as progress:
        while block := list(islice(images, 1024)):
            decoded = decode_all(block, image_size=options.image_size, channels=options.channels)
            for encoded, image in zip(block, decoded, strict=True):
                if isinstance(image, BadImageError):
                    bad.append(f"{records.origin(int(records.rows[position]))}: {image}")
                else:
                    file = image_file(encoded, image, options)
                    yield int(records.ids[position]), file, int(records.labels[position])
                position += 1
            progress.update(len(block))
    check_bad_images(bad, len(records), options)


def image_file(encoded: Encoded, image: np.ndarray, options: Options) -> bytes:
    """Return the file that was given, or a PNG of ``image`` where pixels were given or changed."""
    if options.image_size is None and options.channels is None:
        if isinstance(encoded, bytes):
            return encoded
        if isinstance(encoded, Path):
            return encoded.read_bytes()
    return encode_png(image)


def write(
    train: Records, test: Records, options: Options, output: Path, shard_mib: int
) -> dict[str, int]:
    """Write both parts beside ``output`` and then give them its name, all at once.

    Returns:
        The number of images in each part.
    """
    partial = output.parent / f".{output.name}.{os.getpid()}"
    counts = {}
    try:
        for part, records in (("train", train), ("test", test)):
            shards = write_shards(
                partial / part,
                rows(records, options, part),
                records.classes,
                shard_bytes=shard_mib * 2**20,
            )
            counts[part] = sum(pq.read_metadata(shard).num_rows for shard in shards)
        partial.rename(output)  # refuses a folder that somebody has filled meanwhile
        return counts
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    """Write the shards and say how a config names them."""
    given = vars(parse(arguments))
    output: Path = given["output"].resolve()
    own, common = (
        {name: given[name] for name in inspect.signature(function).parameters}
        for function in (SOURCES[given["name"]], Options)
    )
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output}: must be new or an empty folder; choose another")
        options = Options(**common)
        train, test = options.select(*SOURCES[given["name"]](**own))
        counts = write(train, test, options, output, given["shard_mib"])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"\n{counts['train']} training and {counts['test']} test images of {len(train.classes)} "
        f"classes are in {output}. In a config:\n\n"
        f"data:\n  name: parquet\n  train: {output / 'train'}\n  test: {output / 'test'}"
    )


if __name__ == "__main__":
    main()
