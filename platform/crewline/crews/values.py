"""The kinds of value in a crew file: durations, secrets, references, names.

`${NAME}`, `${NAME:-default}` and `${file:/path}` are resolved before validation; what came from one is
`Referenced` text, which alone may be a secret, and may stand for a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from crewline.crews.yaml_text import scalar
from crewline.errors import UsageError

FILE_BYTES_MAX = 65_536
_REFERENCE = re.compile(r"\$\{(?:file:(?P<file>[^}]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?)\}")
_WHOLE = re.compile(r"\$\{[^}]*\}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])")
_UNIT_S: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class Referenced(str):
    """Text that references were resolved in. `raw` is as written; `missing` says what could not be resolved."""

    raw: str
    missing: str | None

    def __new__(cls, text: str, raw: str, missing: str | None = None) -> Referenced:
        made = super().__new__(cls, text)
        made.raw, made.missing = raw, missing
        return made


class BadReference(Exception):
    """`${…}` with something else than a name or a file in it."""


def resolve(text: str, env: Mapping[str, str] | None) -> str:
    """Return `text` with its references resolved once; a plain `str` if it has none.

    With `env` None nothing is looked up: only defaults are filled in.
    Raises: BadReference.
    """
    if "${" not in text:
        return text
    missing: list[str] = []

    def one(found: re.Match[str]) -> str:
        if (path := found["file"]) is not None:
            value = _file(path) if env is not None else None
            if value is None:
                missing.append(f"the file {path} cannot be read")
            return value or ""
        value = env.get(found["name"]) if env is not None else None
        if found["default"] is not None:
            return value or found["default"]  # as in a shell: `:-` also replaces an empty value
        if value is None:
            missing.append(f"the environment variable {found['name']} is not set")
        return value or ""

    resolved, count = _REFERENCE.subn(one, text)
    if count != text.count("${"):
        raise BadReference
    return Referenced(text if missing else resolved, text, missing[0] if missing else None)


def _file(path: str) -> str | None:
    try:
        with Path(path).open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode().rstrip("\r\n")
    except (OSError, ValueError):
        return None


class Secret:
    """A value that is never shown. `repr`, `str` and dumps are `****`; `reveal()` gives it."""

    __slots__ = ("_text", "reference")

    def __init__(self, text: Referenced) -> None:
        self._text = text
        self.reference = text.raw

    def reveal(self) -> str:
        """Return the value. Raises: UsageError if its reference could not be resolved."""
        if self._text.missing is not None:
            raise UsageError(f"{self._text.missing} (for {self.reference})")
        return str(self._text)

    @property
    def missing(self) -> str | None:
        """What could not be resolved, or None."""
        return self._text.missing

    def __repr__(self) -> str:
        return "****"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._text, self.reference) == (other._text, other.reference)

    def __hash__(self) -> int:
        return hash(self.reference)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._checked, serialization=core_schema.plain_serializer_function_ser_schema(lambda _: "****")
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": cls._pattern, "writeOnly": True}

    _pattern = r"^\$\{[^}]+\}$"

    @classmethod
    def _checked(cls, value: Any) -> Secret:
        if isinstance(value, Secret):
            return value
        if isinstance(value, Referenced) and cls._fits(value.raw):
            return cls(value)
        raise PydanticCustomError("secret_literal", "secret")

    @classmethod
    def _fits(cls, raw: str) -> bool:
        found = _REFERENCE.fullmatch(raw)
        return found is not None and not found["default"]  # a default would be the secret itself, in the file


class SecretText(Secret):
    """Text with a secret in it, such as `Bearer ${TOKEN}` or `${REDIS_URL:-redis://localhost}`."""

    __slots__ = ()
    _pattern = r"\$\{[^}]+\}"

    @classmethod
    def _fits(cls, raw: str) -> bool:
        return _WHOLE.search(raw) is not None


def seconds_of(text: str) -> float | None:
    """Return the seconds in `30s`, `10m`, `24h` or `90d`, or None if it is none of them."""
    found = _DURATION.fullmatch(text)
    return float(found.group(1)) * _UNIT_S[found.group(2)] if found is not None else None


def duration_text(seconds: float) -> str:
    """Return `seconds` as a crew file writes it: in the largest unit that gives a whole number."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNIT_S[unit] and (seconds / _UNIT_S[unit]).is_integer():
            return f"{int(seconds / _UNIT_S[unit])}{unit}"
    return f"{seconds:g}s"


def _seconds(value: Any) -> Any:
    seconds = seconds_of(value) if isinstance(value, str) else None
    if seconds is None or seconds <= 0:
        raise PydanticCustomError("duration", "duration")
    return seconds


def _number(value: Any) -> Any:
    """A reference may stand for a number or a switch; nothing else is converted."""
    return scalar(value) if isinstance(value, Referenced) else value


class _OrReference:
    """Tells the JSON Schema that a reference may stand here."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": r"^\$\{[^}]+\}$"}]}


Duration = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?[smhd]|\$\{[^}]+\})$")]),
    PlainSerializer(duration_text, return_type=str),
]
_FromReference = BeforeValidator(_number)
Whole = Annotated[int, _FromReference, _OrReference]
Number = Annotated[float, Field(allow_inf_nan=False), _FromReference, _OrReference]
Switch = Annotated[bool, _FromReference, _OrReference]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", max_length=64)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$", max_length=129)]
CapabilityName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$", max_length=128)]
Wanted = Annotated[
    str, StringConstraints(pattern=r"^([a-z][a-z0-9_-]*:)?[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$", max_length=200)
]
"""A capability that is asked for: of this crew, or as `crew:capability` of a named other one."""
TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", max_length=249)]
PythonName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
"""`package.module:name`."""
Cel = Annotated[str, StringConstraints(min_length=1, max_length=2_000)]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+){0,2}([-+][0-9A-Za-z.+-]+)?$", max_length=64)]
