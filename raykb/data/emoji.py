"""Emoji as pictures with captions, from the npm packages ``emoji-datasource-<vendor>``.

    npm install --prefix npm emoji-datasource-google emoji-datasource-twitter

A package has a file ``emoji.json`` and a picture of 64 x 64 pixels for each emoji. A caption is
made of its names, subcategory and category: ``dog face, dog, animal mammal, animals & nature``.
Their code is under the MIT licence; the pictures of Google are under Apache-2.0, those of Twitter
under CC-BY 4.0: whoever passes them on names them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raykb.data.atomic import make_folder
from raykb.data.decoding import decode, encode_png
from raykb.data.parquet import Row, write_shards
from raykb.engine.arguments import refuse
from raykb.engine.foreign import parsed, read_text

_LEFT_OUT = ("Component", "Flags")  # no pictures of their own; too many that names tell apart alone


def emoji(
    output: Path,
    *,
    root: str = "node_modules",
    count: int | None = None,
    image_size: int | None = None,
    test_fraction: float = 0.2,
    hold_out: str = "emoji",
    split_seed: int = 0,
) -> dict[str, int]:
    """Emoji with their names: pictures in 8 categories, without flags.

    An id is the emoji's place in the list times the number of packages, plus that of the package.

    Args:
        output: folder of ``train`` and ``test`` that is made; returned is how many each has.
        root: folder that holds the packages ``emoji-datasource-*``, one or several.
        count: emoji that are drawn; all of them by default.
        image_size: side that the pictures are scaled to, in pixels; as they are by default.
        test_fraction: share of the emoji that are held out.
        hold_out: of these, ``emoji``: all pictures, so that the test has things that were never
            seen; or ``picture``: that of one package each, drawn, so that it has things that were
            seen as others draw them.
        split_seed: of all draws.

    Raises:
        FileNotFoundError: there is no package.
        ValueError: one package alone has no second picture to train on, or ``hold_out`` is unknown.
    """
    packages = sorted(Path(root).glob("emoji-datasource-*"))
    if not packages:
        raise FileNotFoundError(
            f"root={root!r}: holds no folder emoji-datasource-*; npm install --prefix npm "
            "emoji-datasource-google makes one in npm/node_modules"
        )
    refuse(_misfits(hold_out, packages))
    entries = _entries(packages)
    classes = sorted({entry["category"] for entry in entries})
    numbers = np.random.default_rng(split_seed)
    drawn = numbers.permutation(len(entries))[:count]
    unseen = drawn[: round(test_fraction * len(drawn))]
    test = np.zeros((len(entries), len(packages)), bool)
    test[unseen] = True
    if hold_out == "picture":
        kept = numbers.integers(len(packages), size=len(unseen))
        test[unseen] = np.arange(len(packages)) == kept[:, None]
    wanted = np.isin(np.arange(len(entries)), drawn)[:, None]
    parts = {"train": np.argwhere(wanted & ~test), "test": np.argwhere(wanted & test)}
    counts = {}

    def write(folder: Path) -> None:
        for part, pictures in parts.items():
            rows = list(_rows(packages, entries, pictures, classes, image_size))
            counts[part] = len(rows)
            write_shards(folder / part, rows, classes)

    if output.is_dir():
        output.rmdir()  # it is empty
    make_folder(output, write)
    return counts


def _misfits(hold_out: str, packages: list[Path]) -> list[str]:
    if hold_out not in ("emoji", "picture"):
        return [f"hold_out: {hold_out!r}, must be 'emoji' or 'picture'"]
    if hold_out == "picture" and len(packages) < 2:
        return [
            f"hold_out: 'picture', must be 'emoji' where {packages[0]} is the only package: no "
            "second picture would be left to train on; install another one, or hold out emoji"
        ]
    return []


def caption_of(entry: dict[str, Any]) -> str:
    """Return the names, subcategory and category of an emoji, each once."""
    names = [entry["name"], *entry["short_names"], entry["subcategory"], entry["category"]]
    plain = (name.lower().replace("_", " ").replace("-", " ").strip() for name in names)
    return ", ".join(dict.fromkeys(plain))


def _entries(packages: list[Path]) -> list[dict[str, Any]]:
    """Return what the list says of the emoji that all packages have pictures of."""
    entries = parsed(read_text(packages[0] / "emoji.json"))
    vendors = [_vendor(package) for package in packages]
    return [
        entry
        for entry in sorted(entries, key=lambda entry: entry["sort_order"])
        if entry["category"] not in _LEFT_OUT
        and all(entry.get(f"has_img_{vendor}") for vendor in vendors)
    ]


def _vendor(package: Path) -> str:
    return package.name.removeprefix("emoji-datasource-")


def _rows(
    packages: list[Path],
    entries: list[dict[str, Any]],
    pictures: np.ndarray,
    classes: list[str],
    image_size: int | None,
) -> Iterator[Row]:
    """Yield the pictures (P, 2): the places of an emoji and of a package."""
    for place, number in pictures.tolist():
        entry, package = entries[place], packages[number]
        file = package / "img" / _vendor(package) / "64" / entry["image"]
        picture = encode_png(decode(file, image_size=image_size, channels=3))  # on white
        label = classes.index(entry["category"])
        yield place * len(packages) + number, picture, label, caption_of(entry)
