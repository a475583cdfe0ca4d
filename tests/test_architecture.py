"""Who may import whom: the floor plan, held over the syntax trees of raykb and pipelines.

                pipelines
        ┌───────────┼───────────┐
        │       assembly        │
      rooms  ┌──────┴──────┐  runtime      ray, mlflow and optuna are runtime's alone
        │  evaluate    comparison   │
        │    │              │     gpipe
        └────┴──────┬───────┴───────┘
  engine parts models data metrics config report

A room of formulas needs no more than engine, parts and metrics.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("raykb", "pipelines")
    for path in (ROOT / folder).rglob("*.py")
)

GROUND = {"config", "data", "engine", "metrics", "models", "parts"}
FORMULAS = {"engine", "metrics", "parts"}
ROOMS = {"augment", "semi", "selfsup", "nas", "recognition", "segmentation"}
TORCH = {"torch", "torchvision"}
SCIENCE = TORCH | {"pandas", "matplotlib", "pyarrow", "yaml", "sklearn", "scipy", "nibabel"}
SCIENCE |= {"monai", "PIL"}
ROOF = {"ray", "mlflow", "optuna"}
RUNTIME = ROOF | {"torch", "pyarrow", "tqdm"}
EVERYONE = set(sys.stdlib_module_names) | {"numpy"}
LATER = "later"  # what has a module imported when it is needed, which is an import like others

# folder or top module: (what of raykb it may import beside itself, what else)
PLAN: dict[str, tuple[set[str], set[str]]] = {
    "raykb": (set(), set()),
    LATER: (set(), set()),
    "config": (set(), {"yaml"}),
    "report": ({"metrics"}, SCIENCE),
    "metrics": (set(), SCIENCE),
    "parts": (set(), SCIENCE),
    # captions are cut into the tokens that their vocabulary has
    "data": ({"config", "engine", "parts"}, SCIENCE | {"tokenizers"}),
    "models": ({"parts"}, TORCH),
    "engine": ({"parts"}, TORCH),
    "gpipe": ({"parts", "engine"}, TORCH),
    **dict.fromkeys(ROOMS, (FORMULAS, TORCH)),
    # operations on images are what its policies are made of; torchvision takes Pillow's images
    "augment": (FORMULAS | {"data"}, TORCH | {"PIL"}),
    "evaluate": (FORMULAS | {"data"}, TORCH | {"monai", "scipy"}),
    "comparison": ({"engine"}, set()),
    # a plan of the room of segmentation says how cases are prepared, and what is built of them; a
    # search is a training of another shape, which the room of nas has; a kind of batch of the room
    # of self-supervised learning says which view makes it; what the room of recognition makes of a
    # batch lies around the feed; the room of augmentation says how a table of losses is made
    "assembly": (
        GROUND
        | {"augment", "comparison", "evaluate", "nas", "recognition", "segmentation", "selfsup"},
        TORCH,
    ),
    "runtime": ({"config", "comparison", "report", "engine", "data", "gpipe"}, RUNTIME),
    "pipelines": (
        GROUND | ROOMS | {"assembly", "comparison", "evaluate", "report", "gpipe", "runtime"},
        SCIENCE | {"tqdm"},
    ),
}


def home(path: str) -> str:
    """Return the entry of the plan that a file belongs to."""
    top, *below = Path(path).with_suffix("").parts
    if top == "pipelines":
        return top
    return "raykb" if below == ["__init__"] else below[0]


def module(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of what is imported at and below a node."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            for alias in child.names:
                yield child.lineno, f"{base}.{alias.name}" if base[:5] == "raykb" else base
        elif isinstance(child, ast.Call) and getattr(child.func, "id", "") == "Later":
            yield from ((child.lineno, name.value) for name in child.args)


def violations(path: str, source: str) -> list[str]:
    """Return what a file does against the plan, as ``file:line: what``."""
    tree, place = ast.parse(source), home(path)
    if place not in PLAN:
        return [f"{path}:1: {place!r} has no place in the plan"]
    inside, outside = PLAN[place]
    found = []
    for line, name in imports(tree):
        top, *below = name.split(".")
        if not top:
            found.append((line, f"imports {name}: write it absolute"))
        elif top == "raykb":
            if below and below[0] not in inside | {place, LATER}:
                found.append((line, f"{place} imports {name}"))
        elif top not in EVERYONE | outside:
            found.append((line, f"{place} imports {name}"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += [(line, f"imports {name} inside a function") for line, name in imports(node)]
    if path.endswith("__init__.py"):
        found += [(n.lineno, "logic in __init__.py") for n in tree.body if not is_plain(n)]
    return [f"{path}:{line}: {what}" for line, what in sorted(set(found))]


def is_plain(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, an import or a table of names."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not any(isinstance(n, ast.Call | ast.Lambda) for n in ast.walk(node))
    return isinstance(node, ast.Import | ast.ImportFrom)


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return modules that import each other in a circle; empty if there are none."""
    modules = {module(path): source for path, source in sources.items()}
    graph = {}
    for name, source in modules.items():
        names = {imported for _, imported in imports(ast.parse(source))}
        known = {n if n in modules else n.rpartition(".")[0] for n in names}
        graph[name] = (known & modules.keys()) - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", FILES)
def test_a_file_keeps_to_the_plan(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert cycle({path: (ROOT / path).read_text() for path in FILES}) == []


# ---------------------------------------------------------------------- the checker checked


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("raykb/augment/policy.py", "import ray", "augment imports ray"),
        ("raykb/augment/policy.py", "from ray.tune import Tuner", "augment imports ray.tune"),
        ("raykb/augment/policy.py", "import pandas as pd", "augment imports pandas"),
        ("raykb/augment/a.py", "from raykb.semi import b", "augment imports raykb.semi.b"),
        ("raykb/augment/a.py", "from raykb import semi", "augment imports raykb.semi"),
        ("raykb/augment/a.py", "import raykb.runtime.tune", "augment imports raykb.runtime.tune"),
        ("raykb/engine/loop.py", "from raykb.data.x import y", "engine imports raykb.data.x.y"),
        ("raykb/engine/loop.py", 'mlflow = Later("mlflow")', "engine imports mlflow"),
        ("raykb/engine/loop.py", "import mlflow.entities", "engine imports mlflow.entities"),
        ("raykb/config/values.py", "import torch", "config imports torch"),
        ("raykb/parts/heads.py", "import tokenizers", "parts imports tokenizers"),
        ("pipelines/vilt.py", "import tokenizers", "pipelines imports tokenizers"),
        ("raykb/semi/a.py", "from raykb.data import b", "semi imports raykb.data.b"),
        ("raykb/semi/a.py", "import raykb.models.b", "semi imports raykb.models.b"),
        ("raykb/assembly/a.py", "from raykb.semi import b", "assembly imports raykb.semi.b"),
        ("raykb/runtime/job.py", "import raykb.augment.x", "runtime imports raykb.augment.x"),
        ("raykb/runtime/job.py", "import requests", "runtime imports requests"),
        ("raykb/gpipe/stage.py", "import ray", "gpipe imports ray"),
        ("pipelines/search.py", "from mlflow import MlflowClient", "pipelines imports mlflow"),
        ("pipelines/search.py", "import ray", "pipelines imports ray"),
        ("raykb/misc/a.py", "", "'misc' has no place in the plan"),
        ("raykb/data/a.py", "from .b import c", "imports .b: write it absolute"),
        ("raykb/data/a.py", "def f():\n    import json", "imports json inside a function"),
        ("raykb/data/__init__.py", "def f(): ...", "logic in __init__.py"),
        ("raykb/data/__init__.py", "TABLE = dict(a=1)", "logic in __init__.py"),
        ("raykb/data/__init__.py", "for a in (1, 2): pass", "logic in __init__.py"),
        ("raykb/__init__.py", "import raykb.data", "raykb imports raykb.data"),
    ],
)
def test_the_checker_names_file_and_import(path, source, found):
    line = 2 if "\n" in source else 1
    assert violations(path, source) == [f"{path}:{line}: {found}"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("raykb/augment/a.py", "import torch\nimport numpy\nfrom raykb.augment.b import c"),
        ("raykb/semi/a.py", "from raykb.engine.objective import Objective\nimport math"),
        (
            "raykb/runtime/a.py",
            "import ray\nfrom raykb import config\nfrom raykb.engine import loop",
        ),
        ("raykb/data/a.py", 'from raykb.later import Later\nsklearn = Later("sklearn")'),
        ("raykb/models/__init__.py", '"""Models."""\nfrom raykb.models.a import b\nM = {"b": b}'),
        ("pipelines/a.py", "from raykb.runtime.tune import x\nfrom raykb.nas import y"),
    ],
)
def test_the_checker_lets_the_plan_pass(path, source):
    assert violations(path, source) == []


def test_the_checker_sees_a_circle():
    circle = cycle(
        {
            "raykb/engine/__init__.py": "",
            "raykb/engine/a.py": "from raykb.engine.b import f",
            "raykb/engine/b.py": "from raykb.engine import c",
            "raykb/engine/c.py": "import raykb.engine.a",
        }
    )
    assert set(circle) == {"raykb.engine.a", "raykb.engine.b", "raykb.engine.c"}
