"""Small values that a batch may hold beside its tensors, as numbers and strings, and back."""

from __future__ import annotations

import datetime
import decimal
import fractions
import pathlib
import sys
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class _Kind(NamedTuple):
    types: type | tuple[type, ...]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def _offset(moment: Any) -> float | None:
    offset = moment.utcoffset()
    return None if offset is None else offset.total_seconds()


def _zone(seconds: float | None) -> datetime.timezone | None:
    return None if seconds is None else datetime.timezone(datetime.timedelta(seconds=float(seconds)))


# In this order: a datetime is a date.
_KINDS: dict[str, _Kind] = {
    "path": _Kind(pathlib.PurePath, str, lambda text: pathlib.Path(str(text))),
    "datetime": _Kind(
        datetime.datetime,
        lambda m: [m.replace(tzinfo=None).isoformat(), _offset(m), m.fold],
        lambda v: datetime.datetime.fromisoformat(v[0]).replace(tzinfo=_zone(v[1]), fold=int(v[2])),
    ),
    "date": _Kind(datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": _Kind(
        datetime.time,
        lambda m: [m.replace(tzinfo=None).isoformat(), _offset(m)],
        lambda v: datetime.time.fromisoformat(v[0]).replace(tzinfo=_zone(v[1])),
    ),
    "timedelta": _Kind(
        datetime.timedelta, lambda d: [d.days, d.seconds, d.microseconds], lambda v: datetime.timedelta(*v)
    ),
    "timezone": _Kind(datetime.timezone, lambda z: z.utcoffset(None).total_seconds(), _zone),
    "uuid": _Kind(uuid.UUID, lambda u: u.hex, uuid.UUID),
    "decimal": _Kind(decimal.Decimal, str, decimal.Decimal),
    "fraction": _Kind(fractions.Fraction, lambda f: [f.numerator, f.denominator], lambda v: fractions.Fraction(*v)),
    "range": _Kind(range, lambda r: [r.start, r.stop, r.step], lambda v: range(*v)),
    "slice": _Kind(slice, lambda s: [s.start, s.stop, s.step], lambda v: slice(*v)),
    "ellipsis": _Kind(type(...), lambda _: None, lambda _: ...),
}


def encode_plain(value: Any) -> tuple[str, Any] | None:
    """Returns the name of its kind, and numbers and strings that say it all; ``None`` for other values.

    Example:
        >>> encode_plain(pathlib.PurePosixPath("a.png"))
        ('path', 'a.png')
    """
    array = _encode_array(value)
    if array is not None:
        return "array", array
    for name, kind in _KINDS.items():
        if isinstance(value, kind.types):
            items = kind.encode(value)
            return (name, items) if name != "slice" or all(type(i) in (int, type(None)) for i in items) else None
    return None


def decode_plain(kind: str, items: Any) -> Any:
    """Returns what :func:`encode_plain` was given.

    Raises:
        KeyError: for an unknown kind.
    """
    return _decode_array(items) if kind == "array" else _KINDS[kind].decode(items)


def _encode_array(value: Any) -> dict[str, Any] | None:
    """Returns a NumPy array or scalar by its bytes; none with objects or named fields in it."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    array = numpy.asarray(value)
    if array.dtype.hasobject or array.dtype.names is not None or array.dtype.kind not in "biufcmMUS":
        return None
    raw = bytearray(numpy.ascontiguousarray(array).tobytes())
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "scalar": isinstance(value, numpy.generic),
        "bytes": torch.frombuffer(raw, dtype=torch.uint8) if raw else None,
    }


def _decode_array(items: dict[str, Any]) -> Any:
    import numpy  # the batch had arrays, so the step needs it

    raw = b"" if items["bytes"] is None else items["bytes"].numpy().tobytes()
    dtype = numpy.dtype(str(items["dtype"]))
    if dtype.hasobject:
        raise ValueError("an array of objects")
    array = numpy.frombuffer(raw, dtype=dtype).reshape([int(size) for size in items["shape"]]).copy()
    return array[()] if items["scalar"] else array
