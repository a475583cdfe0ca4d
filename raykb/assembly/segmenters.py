"""Networks that classify voxels, and how a command line names several of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raykb.assembly.builder import Config, Models
from raykb.comparison import Comparison
from raykb.config import build, dump
from raykb.models import SEGMENTERS
from raykb.nas.found import found_network

CELLS = "scnas"  # the row whose networks are made of cells
NETWORKS: Models = SEGMENTERS | {CELLS: found_network}
PLANNED = ("strides", "kernel_sizes", "widths")  # what a plan decides of a network


def methods_named(config: Config, /, given: Mapping[str, str]) -> list[str]:
    """Return the settings that ``--methods A,B`` is short for, as ``--set`` takes them.

    Each is a label of the configuration, a row of :data:`NETWORKS` or a file of a genotype; the
    last one is the run's own model, the others are its rivals.

    Raises:
        ValueError: a method is not known, or two have one label.
    """
    comparison = build(Comparison, config["comparison"])
    entries = comparison.entries(config) if comparison.over == "model" else {}
    known = {label: entry["model"] for label, entry in entries.items()}
    named = [_named(text.strip(), known) for text in given["methods"].split(",")]
    models = dict(named)
    if len(models) < len(named):
        labels = ", ".join(label for label, _ in named)
        raise ValueError(f"--methods: {labels}, must be called otherwise each; rename a file")
    *rivals, (label, own) = models.items()
    own_comparison = {"over": "model", "label": label, "rivals": dict(rivals)}
    return [f"model={dump(own)}", f"comparison={dump(config['comparison'] | own_comparison)}"]


def _named(text: str, known: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Return the label and the section ``model`` of one of the methods."""
    if text in known:
        return text, known[text]
    if text in NETWORKS:
        return text, {"name": text}
    if text.endswith(".json"):
        return Path(text).stem, {"name": CELLS, "genotype": str(Path(text).absolute())}
    allowed = ", ".join(dict.fromkeys([*known, *NETWORKS]))
    raise ValueError(f"--methods: {text!r}, must be one of {allowed}, or a file genotype.json")
