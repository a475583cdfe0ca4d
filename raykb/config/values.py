"""Values of YAML and the annotations of the arguments that they become."""

import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

Constructor: TypeAlias = Callable[..., Any]

MISFIT = object()
"""What :func:`fit` and :func:`plain` return where there is no value."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parameters(constructor: Constructor) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a constructor, their annotations evaluated if they can be."""
    try:
        return inspect.signature(constructor, eval_str=True).parameters
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(constructor).parameters


def by_name(constructor: Constructor) -> dict[str, inspect.Parameter]:
    """Return the parameters that a configuration can name."""
    return {key: p for key, p in parameters(constructor).items() if p.kind in _BY_NAME}


def plain_default(constructor: Constructor, parameter: inspect.Parameter) -> Any:
    """Return a parameter's default as YAML has it; ``MISFIT`` if YAML can say none."""
    value = parameter.default
    if isinstance(constructor, type) and is_dataclass(constructor):
        factories = {field.name: field.default_factory for field in fields(constructor)}
        if (factory := factories.get(parameter.name, MISSING)) is not MISSING:
            value = factory()
    return plain(fit(parameter.annotation, plain(value)))


def plainly(kind: Any, value: Any) -> Any:
    """Return what an annotation makes of a value, as YAML has it: 1 is 1.0 where that is a float.

    What does not fit is returned as it is.
    """
    fitted = plain(fit(kind, value))
    return value if fitted is MISFIT else fitted


def plain(value: Any) -> Any:
    """Return a value as YAML has it, or ``MISFIT``: a tuple as a list, a path as text."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else MISFIT
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return MISFIT if any(item is MISFIT for item in items) else items
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        pairs = {key: plain(item) for key, item in value.items()}
        return MISFIT if any(item is MISFIT for item in pairs.values()) else pairs
    return MISFIT


def is_type(entry: Any) -> bool:
    """Say if an entry of a schema is the type of a plain value, and no constructor."""
    builtin = isinstance(entry, type) and entry.__module__ == "builtins"
    return builtin or entry in (Any, None, Path) or get_origin(entry) is not None


def fit(kind: Any, value: Any) -> Any:
    """Return ``value`` as the annotation ``kind`` wants it, or ``MISFIT``."""
    if value is MISFIT:
        return MISFIT
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, inspect.Parameter.empty) or isinstance(kind, str | TypeVar):
        return value
    if origin is Annotated:
        return fit(arguments[0], value)
    if origin in (Union, types.UnionType):
        fits = [fitted for arm in arguments if (fitted := fit(arm, value)) is not MISFIT]
        return next((fitted for fitted in fits if fitted is value), fits[0] if fits else MISFIT)
    if origin is Literal:
        return value if (type(value), value) in [(type(a), a) for a in arguments] else MISFIT
    if kind in (None, types.NoneType):
        return value if value is None else MISFIT
    if kind in (int, float) and isinstance(value, bool):
        return MISFIT
    if kind is float:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else MISFIT
    if kind is Path:
        return Path(value) if isinstance(value, str) else MISFIT
    return _fit_class(origin or kind, arguments, value)


def _fit_class(kind: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(kind, type):
        return MISFIT
    if issubclass(kind, Mapping):
        return _fit_mapping(arguments or (Any, Any), value)
    if kind is tuple or (issubclass(kind, Iterable) and issubclass(list, kind)):
        return _fit_items(kind, arguments, value)
    return value if isinstance(value, kind) else MISFIT


def _fit_mapping(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        return MISFIT
    pairs = [(fit(kinds[0], key), fit(kinds[1], item)) for key, item in value.items()]
    return MISFIT if any(MISFIT in pair for pair in pairs) else dict(pairs)


def _fit_items(kind: type, kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return MISFIT
    if kind is not tuple or kinds[1:] == (...,) or not kinds:
        kinds = (kinds[0] if kinds else Any,) * len(value)
    if len(kinds) != len(value):
        return MISFIT
    items = [fit(kind, item) for kind, item in zip(kinds, value, strict=True)]
    if any(item is MISFIT for item in items):
        return MISFIT
    return tuple(items) if kind is tuple else items


def kind_text(annotation: Any) -> str:
    """Return how a message names what an annotation allows."""
    if annotation is inspect.Parameter.empty:
        return "a value"
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", inspect.formatannotation(annotation))
    return re.sub(r"Literal\[([^\]]*)\]", r"one of \1", text)
