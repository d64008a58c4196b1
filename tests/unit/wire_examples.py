"""Events made from their types alone: one with every field set, and any at all (for hypothesis)."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as mi

INTS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def full(kind: type[msgspec.Struct]) -> Any:
    """Return an instance in which every field, and every field inside it, differs from its default."""
    return _full(mi.type_info(kind), kind.__name__)


def anything(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Return a strategy for every value that the type allows."""
    return _any(mi.type_info(kind))


def _full(kind: mi.Type, name: str) -> Any:
    match kind:
        case mi.StructType():
            return kind.cls(**{field.name: _other(field) for field in kind.fields})
        case mi.UnionType():
            return _full(next(each for each in kind.types if not isinstance(each, mi.NoneType)), name)
        case mi.VarTupleType():
            return (_full(kind.item_type, name), _full(kind.item_type, name))
        case mi.LiteralType():
            return kind.values[-1]
        case mi.DictType() | mi.AnyType():
            return {name: ["ü", 1, 2.5, None, True]}
        case mi.BoolType():
            return True
        case mi.IntType():
            return sum(name.encode())
        case mi.FloatType():
            return sum(name.encode()) / 16
        case mi.StrType():
            return f"{name} ü"
    raise TypeError(f"no example for {kind}")


def _other(field: mi.Field) -> Any:
    value = _full(field.type, field.name)
    if value == field.default:  # a Literal whose last value is the default, or a flag that is set by default
        value = not value if isinstance(value, bool) else field.type.values[0]  # type: ignore[attr-defined]
    assert value != field.default, field.name
    return value


def _any(kind: mi.Type) -> st.SearchStrategy[Any]:
    match kind:
        case mi.StructType():
            return st.builds(kind.cls, **{field.name: _any(field.type) for field in kind.fields})
        case mi.UnionType():
            return st.one_of(*map(_any, kind.types))
        case mi.VarTupleType():
            return st.lists(_any(kind.item_type), max_size=2).map(tuple)
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.DictType():
            return st.dictionaries(TEXTS, JSON, max_size=3)
        case mi.AnyType():
            return JSON
        case mi.BoolType():
            return st.booleans()
        case mi.IntType():
            return INTS
        case mi.FloatType():
            return FLOATS
        case mi.StrType():
            return TEXTS
        case mi.NoneType():
            return st.none()
    raise TypeError(f"no strategy for {kind}")
