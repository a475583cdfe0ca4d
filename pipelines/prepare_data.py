"""Turn any data set into what pipelines read: images into Parquet shards, volumes into tasks."""

import argparse
import ast
import inspect
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

USAGE = """
A shard has the columns id (int64), image (the bytes of an image file) and label (int64), and the
names of the classes in its metadata. Image files keep their bytes unless --image-size or
--channels asks for other pixels; pixels are written as PNG, without loss. Volumes become a task in
the Decathlon's layout, NIfTI files beside a dataset.json. What is written appears when all of it
is there, never before.

examples:
  prepare_data.py fashion_mnist out/fashion --root /usr/share/datasets/fashion-mnist
  prepare_data.py idx out/mnist --root raw/mnist
  prepare_data.py cifar10 out/reduced-cifar10 --train-size 4000
  prepare_data.py image_folder out/flowers --root photos --test-fraction 0.2 --image-size 64
  prepare_data.py colin27 out/colin27
  prepare_data.py emoji out/emoji --root npm/node_modules
  prepare_data.py image_folder --help
"""
DATA = Path(__file__).resolve().parents[1] / "raykb" / "data"
MAKERS = ("colin27", "emoji")  # of what is no set of images alone; each has a file of its name
TYPES = {"int": (int, "N"), "float": (float, "X"), "str": (str, "TEXT")}

Declared = ast.FunctionDef | ast.ClassDef


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; those of a data set are its function's own."""
    parser = argparse.ArgumentParser(
        prog="python pipelines/prepare_data.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sets = parser.add_subparsers(dest="name", metavar="SET", required=True)
    (options,) = (node for node in declared("options.py") if node.name == "Options")
    for source in filter(is_source, declared("datasets.py")):
        command = add_command(sets, source, ast.get_docstring(options))
        command.add_argument(
            "--shard-mib", type=int, default=32, help="size of a shard, 16 to 64 (default: 32)"
        )
        add_options(command, source, options)
    for name in MAKERS:
        (maker,) = (node for node in declared(f"{name}.py") if node.name == name)
        add_options(add_command(sets, maker), maker)
    namespace = parser.parse_args(arguments)
    if not 16 <= getattr(namespace, "shard_mib", 16) <= 64:
        parser.error(f"--shard-mib {namespace.shard_mib}: must be in 16..64")
    return namespace


def add_command(sets: Any, source: Declared, epilog: str | None = None) -> argparse.ArgumentParser:
    """Make the command of a data set, by what its function says of itself."""
    text = ast.get_docstring(source) or ""
    command: argparse.ArgumentParser = sets.add_parser(
        source.name,
        help=text.splitlines()[0],
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("output", type=Path, help="folder to make; must not hold anything")
    return command


def declared(file: str) -> list[Declared]:
    """Return functions and classes of a file of ``raykb.data``, which is read and not imported.

    Their signatures are wanted before there is time to import what their bodies need.
    """
    tree = ast.parse((DATA / file).read_text())
    return [node for node in tree.body if isinstance(node, Declared)]


def is_source(node: Declared) -> bool:
    """Return whether a function is one of the table ``SOURCES``."""
    if not isinstance(node, ast.FunctionDef) or node.returns is None:
        return False
    return ast.unparse(node.returns) == "Pair" and not node.name.startswith("_")


def parameters(node: Declared) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    """Yield name, annotation and default of a function's keywords, or of a dataclass's fields."""
    if isinstance(node, ast.FunctionDef):
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            if argument.annotation is not None:
                yield argument.arg, argument.annotation, default
    else:
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                yield ast.unparse(field.target), field.annotation, field.value


def add_options(command: argparse.ArgumentParser, *nodes: Declared) -> None:
    """Make an option of each keyword of functions, and of each field of dataclasses."""
    for node in nodes:
        for name, annotation, default in parameters(node):
            add_option(command, name, ast.unparse(annotation).split(" | "), default)


def add_option(
    parser: argparse.ArgumentParser, name: str, kinds: list[str], default: ast.expr | None
) -> None:
    """Make ``--image-size N`` of ``image_size: int | None = None``, and so on."""
    option: dict[str, Any] = {"required": default is None}
    if "bool" in kinds:
        option["action"] = argparse.BooleanOptionalAction
    elif "list[str]" in kinds:
        option |= {"nargs": "+", "metavar": "TEXT"}
    else:
        option["type"], option["metavar"] = TYPES[kinds[0]]
    if default is not None:
        value = ast.literal_eval(default)
        option |= {"default": value, "help": f"(default: {value})"}
    parser.add_argument("--" + name.replace("_", "-"), **option)


if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    parse(None)  # --help, before the imports below take their seconds

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from raykb.data.colin27 import colin27
from raykb.data.datasets import SOURCES
from raykb.data.decathlon import read_task
from raykb.data.decoding import BadImageError, Encoded, decode_all, encode_png
from raykb.data.emoji import emoji
from raykb.data.loading import check_bad_images
from raykb.data.options import Options
from raykb.data.parquet import write_shards
from raykb.data.records import Records
from raykb.runtime.secrets import redacted


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
    """Write the data set and say how a config names it."""
    given = vars(parse(arguments))
    output: Path = given["output"].resolve()
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output}: must be new or an empty folder; choose another")
        told = {"colin27": volumes, "emoji": pairs}.get(given["name"], images)(given, output)
    except (ImportError, ValueError, OSError) as error:
        sys.exit(redacted(f"error: {error}"))
    print(f"\n{told}")


def images(given: dict[str, Any], output: Path) -> str:
    """Write shards of images, and return what there is then."""
    own, common = (
        {name: given[name] for name in inspect.signature(function).parameters}
        for function in (SOURCES[given["name"]], Options)
    )
    options = Options(**common)
    train, test = options.select(*SOURCES[given["name"]](**own))
    counts = write(train, test, options, output, given["shard_mib"])
    return (
        f"{counts['train']} training and {counts['test']} test images of {len(train.classes)} "
        f"classes are in {output}. In a config:\n\n"
        f"data:\n  name: parquet\n  train: {output / 'train'}\n  test: {output / 'test'}"
    )


def volumes(given: dict[str, Any], output: Path) -> str:
    """Write a task of volumes, and return what there is then."""
    own = {name: given[name] for name in inspect.signature(colin27).parameters if name != "output"}
    task = read_task(colin27(output, **own))
    return (
        f"{len(task.training)} labelled volumes of {len(task.labels)} labels, with the background, "
        f"are in {task.folder}. In a config of decathlon.py:\n\n"
        f"data:\n  root: {output}"
    )


def pairs(given: dict[str, Any], output: Path) -> str:
    """Write shards of images with captions, and return what there is then."""
    own = {name: given[name] for name in inspect.signature(emoji).parameters if name != "output"}
    counts = emoji(output, **own)
    return (
        f"{counts['train']} training and {counts['test']} test pictures with captions are in "
        f"{output}. In a config of vilt.py:\n\n"
        f"data:\n  name: parquet\n  train: {output / 'train'}\n  test: {output / 'test'}"
    )


if __name__ == "__main__":
    main()
