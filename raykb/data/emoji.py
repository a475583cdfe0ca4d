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
from raykb.engine.foreign import parsed, read_text

_LEFT_OUT = ("Component", "Flags")  # no pictures of their own; too many that names tell apart alone


def emoji(
    output: Path,
    *,
    root: str = "node_modules",
    count: int | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> dict[str, int]:
    """Emoji with their names: 64 x 64 pictures in 8 categories, without flags.

    Pictures that packages have of one emoji are all for training, or all for the test. An id is the
    emoji's place in the list times the number of packages, plus that of the package.

    Args:
        output: folder of ``train`` and ``test`` that is made; returned is how many each has.
        root: folder that holds the packages ``emoji-datasource-*``, one or several.
        count: emoji that are drawn; all of them by default.
        test_fraction: share of the emoji that is held out.
        split_seed: of both draws.

    Raises:
        FileNotFoundError: there is no package.
    """
    packages = sorted(Path(root).glob("emoji-datasource-*"))
    if not packages:
        raise FileNotFoundError(
            f"root={root!r}: holds no folder emoji-datasource-*; npm install --prefix npm "
            "emoji-datasource-google makes one in npm/node_modules"
        )
    entries = _entries(packages)
    classes = sorted({entry["category"] for entry in entries})
    drawn = np.random.default_rng(split_seed).permutation(len(entries))[:count]
    held_out = round(test_fraction * len(drawn))
    parts = {"train": np.sort(drawn[held_out:]), "test": np.sort(drawn[:held_out])}
    counts = {}

    def write(folder: Path) -> None:
        for part, places in parts.items():
            rows = list(_rows(packages, entries, places, classes))
            counts[part] = len(rows)
            write_shards(folder / part, rows, classes)

    if output.is_dir():
        output.rmdir()  # it is empty
    make_folder(output, write)
    return counts


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
    packages: list[Path], entries: list[dict[str, Any]], places: np.ndarray, classes: list[str]
) -> Iterator[Row]:
    for place in places.tolist():
        entry = entries[place]
        for number, package in enumerate(packages):
            file = package / "img" / _vendor(package) / "64" / entry["image"]
            picture = encode_png(decode(file, channels=3))  # on white
            label = classes.index(entry["category"])
            yield place * len(packages) + number, picture, label, caption_of(entry)
