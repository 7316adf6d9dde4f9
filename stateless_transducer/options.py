"""Metadata of options, declared in the annotation of a dataclass's field: bounds, and how common the option is.

``Annotated[float, Interval(gt=0, le=1)]`` bounds a number, or each number of a tuple; ``Literal`` lists the choices;
`ADVANCED` leaves the option to ``--help-all``.
"""

from __future__ import annotations

import math
import numbers
import operator
import types
from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, Unit

ADVANCED = "advanced option"
"""Mark of an option, or of a dataclass of options, that ``--help`` leaves to ``--help-all``."""
HIDDEN = "hidden option"
"""Mark of an option that no help shows: an old spelling."""


# kind of bound: its attribute, what must hold, how it reads
_BOUNDS: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", operator.ge, "at least"),
    Gt: ("gt", operator.gt, "above"),
    Le: ("le", operator.le, "at most"),
    Lt: ("lt", operator.lt, "below"),
}


def check_bounds(config: Any) -> None:
    """Check the fields of a dataclass against the types and bounds of their annotations; floats must also be finite.

    Types other than numbers, strings, booleans and tuples are not checked.

    Raises:
        ValueError: names the field, its type or bounds, and the value.
    """
    hints = type_hints(type(config))
    for name in config.__dataclass_fields__:
        value, hint = getattr(config, name), hints[name]
        if _is_tuple(hint) and not isinstance(value, tuple):
            raise ValueError(f"`{name}` must be a tuple, but is {_spell(value)}.")
        for member in value if isinstance(value, tuple) else (value,):
            requirement = _broken(member, hint)
            if requirement:
                raise ValueError(f"`{name}` must be {requirement}, but is {_spell(member)}.")


@cache
def type_hints(kind: type) -> dict[str, Any]:
    """Annotations of a dataclass's fields, metadata included."""
    return get_type_hints(kind, include_extras=True)


def metadata_of(hint: Any) -> list[Any]:
    """Metadata of an annotation: ``Annotated[int, Ge(1)] | None`` has ``Ge(1)``."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *metadata = get_args(hint)
        return [*metadata_of(inner), *metadata]
    if origin in (Union, types.UnionType, tuple):
        return [item for member in get_args(hint) for item in metadata_of(member)]
    return []


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a ``Literal``; none for other types."""
    origin = get_origin(hint)
    if origin is Literal:
        return get_args(hint)
    if origin in (Annotated, Union, types.UnionType, tuple):
        return tuple(choice for member in get_args(hint) for choice in choices_of(member))
    return ()


@cache
def _rules(hint: Any) -> tuple[tuple[type, ...], tuple[Any, ...], dict[type, Any], str]:
    """Types, choices, limits by kind of bound, and unit of an annotation; computed once, since tuples can be long."""
    metadata = list(_flat(metadata_of(hint)))
    limits = {type(item): getattr(item, _BOUNDS[type(item)][0]) for item in metadata if type(item) in _BOUNDS}
    unit = next((f" {item.unit}" for item in metadata if isinstance(item, Unit)), "")
    return _types_of(hint), choices_of(hint), limits, unit


def _broken(value: Any, hint: Any) -> str:
    """What the value must be and is not; empty if it keeps to its annotation."""
    kinds, choices, limits, unit = _rules(hint)
    if value is None and not {types.NoneType, object}.isdisjoint(kinds):
        return ""
    if choices:
        return "" if value in choices else f"one of {', '.join(map(str, choices))}"
    if not any(_is_a(value, kind) for kind in kinds):
        return " or ".join(_TYPES[kind] for kind in kinds if kind is not types.NoneType)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if all(_BOUNDS[kind][1](value, limit) for kind, limit in limits.items()):
        return ""
    if Ge in limits and Le in limits:
        return f"in {limits[Ge]}..{limits[Le]}{unit}"
    return " and ".join(f"{_BOUNDS[kind][2]} {limit}{unit}" for kind, limit in limits.items())


_TYPES = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def _types_of(hint: Any) -> tuple[type, ...]:
    """Types of an annotation, or of the members of a tuple; `object` where any value is allowed."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _types_of(get_args(hint)[0])
    if origin in (Union, types.UnionType, tuple):
        return tuple(kind for member in get_args(hint) if member is not Ellipsis for kind in _types_of(member))
    if origin is Literal:
        return tuple(type(choice) for choice in get_args(hint))
    return (hint,) if hint in (*_TYPES, types.NoneType) else (object,)


def _is_tuple(hint: Any) -> bool:
    return get_origin(get_args(hint)[0] if get_origin(hint) is Annotated else hint) is tuple


def _is_a(value: Any, kind: type) -> bool:
    if kind is int or kind is float:
        # NumPy's numbers too
        abstract = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, abstract) and not isinstance(value, bool)
    return isinstance(value, kind)


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    for item in metadata:
        if isinstance(item, GroupedMetadata):
            yield from _flat(item)
        else:
            yield item


def _spell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return repr(value) if isinstance(value, str) else str(value)
