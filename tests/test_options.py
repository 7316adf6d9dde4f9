from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_type_hints

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Unit

from stateless_transducer.commands import recipe, serve, stream, transcribe
from stateless_transducer.options import check_bounds, metadata_of, type_hints


@dataclass(frozen=True)
class _Config:
    count: Annotated[int, Ge(1)] = 1
    share: Annotated[float, Interval(ge=0, lt=1)] = 0.5
    size: Annotated[float, Gt(0), Unit("MiB")] = 1.0
    port: Annotated[int, Interval(ge=0, le=9)] | None = None
    speeds: tuple[Annotated[float, Interval(gt=0, le=2)], ...] = ()
    free: float = 0.0
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"count": 1, "share": 0, "size": 1e-9, "port": 9},
        {"port": None, "speeds": (2, 0.1)},
        {"free": np.float32(2)},
    ],
)
def test_values_within_bounds_are_accepted(good):
    _Config(**good)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "`count` must be at least 1, but is 0."),
        ({"share": 1.0}, "`share` must be at least 0 and below 1, but is 1."),
        ({"size": 0.0}, "`size` must be above 0 MiB, but is 0."),
        ({"port": 10}, "`port` must be in 0..9, but is 10."),
        ({"speeds": (1.0, 2.5)}, "`speeds` must be above 0 and at most 2, but is 2.5."),
        ({"free": float("nan")}, "`free` must be a finite number, but is nan."),
        ({"size": float("inf")}, "`size` must be a finite number, but is inf."),
        ({"kind": "c"}, "`kind` must be one of a, b, but is 'c'."),
        ({"count": "2"}, "`count` must be a whole number, but is '2'."),
        ({"count": True}, "`count` must be a whole number, but is True."),
        ({"count": None}, "`count` must be a whole number, but is None."),
        ({"share": "x"}, "`share` must be a number, but is 'x'."),
        ({"port": 2.5}, "`port` must be a whole number, but is 2.5."),
        ({"speeds": [1.0]}, "`speeds` must be a tuple, but is [1.0]."),
        ({"speeds": 1.0}, "`speeds` must be a tuple, but is 1."),
    ],
)
def test_value_out_of_bounds_is_named(wrong, message):
    with pytest.raises(ValueError) as raised:
        _Config(**wrong)
    assert str(raised.value) == message


def _dataclasses_of(kind):
    yield kind
    hints = get_type_hints(kind)
    for item in fields(kind):
        if hasattr(hints[item.name], "__dataclass_fields__"):
            yield from _dataclasses_of(hints[item.name])


@pytest.mark.parametrize(
    "options", [recipe.TrainOptions, recipe.DecodeOptions, transcribe.Options, serve.Options, stream.Options]
)
def test_declared_bounds_are_checked(options):
    """A dataclass with bounds and without a check would take any value."""
    for kind in _dataclasses_of(options):
        metadata = [item for hint in type_hints(kind).values() for item in metadata_of(hint)]
        if any(isinstance(item, Ge | Gt | Interval) for item in metadata):
            assert "__post_init__" in dir(kind), kind
