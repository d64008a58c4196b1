"""What a function's signature and docstring say about its arguments: a closed JSON Schema, and a check.

pydantic does the work; it is imported when the first tool is made.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from crewline.errors import CrewlineError, UsageError

from crewline_tools.context import ToolContext

if TYPE_CHECKING:
    from pydantic import BaseModel

_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?|Attributes|Source):\s*")
_ARGUMENT = re.compile(r"(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)")


class ArgumentsInvalid(CrewlineError):
    """The arguments do not fit the function's signature; nothing was called."""

    code = "tool.arguments"


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument that a value is given for. `required`: it has no default."""

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


class Signature:
    """The arguments of one function: those that get values, and the one that gets the context."""

    def __init__(
        self, place: str, description: str, parameters: Mapping[str, Parameter], context: str | None, is_async: bool
    ) -> None:
        self.place = place
        self.description = description
        self.parameters = parameters
        self.context = context
        self.is_async = is_async
        self._models: dict[frozenset[str], type[BaseModel]] = {}

    def schema(self, without: Collection[str]) -> dict[str, Any]:
        """Return the closed JSON Schema of the arguments, `without` the injected ones. Raises: UsageError."""
        for name in without:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise UsageError(f"tool {self.place}: there is no argument {name!r} to inject; its arguments: {known}")
        try:
            schema = self._model(frozenset(self.parameters) - frozenset(without)).model_json_schema()
        except Exception as error:
            raise UsageError(f"tool {self.place}: no JSON Schema can be made of its arguments: {error}") from None
        closed: dict[str, Any] = _closed(schema)
        closed.setdefault("properties", {})
        return closed

    def arguments(self, text: str, injected: Mapping[str, Any], inject: Collection[str]) -> dict[str, Any]:
        """Return checked keyword arguments. Raises: ArgumentsInvalid."""
        from pydantic import ValidationError

        theirs = frozenset(self.parameters) - frozenset(inject)
        try:
            said = self._model(theirs).model_validate_json(text.strip() or "{}")
            arguments = _values(said, self.parameters)
            if inject:
                ours = self._model(frozenset(inject)).model_validate(dict(injected))
                arguments |= _values(ours, self.parameters)
        except ValidationError as error:
            raise ArgumentsInvalid("; ".join(_problem(each) for each in error.errors(include_url=False))) from None
        return arguments

    def _model(self, names: frozenset[str]) -> type[BaseModel]:
        if names not in self._models:
            self._models[names] = self._make_model([self.parameters[name] for name in self.parameters if name in names])
        return self._models[names]

    def _make_model(self, parameters: Collection[Parameter]) -> type[BaseModel]:
        from pydantic import ConfigDict, Field, create_model

        # Fields are numbered and aliased: a parameter may have any name, also one that BaseModel uses.
        fields: dict[str, Any] = {}
        for index, parameter in enumerate(self.parameters.values()):
            if parameter not in parameters:
                continue
            told: dict[str, Any] = {"description": parameter.description} if parameter.description else {}
            default = ... if parameter.required else parameter.default
            fields[f"a{index}"] = (parameter.annotation, Field(default, alias=parameter.name, **told))
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=False, protected_namespaces=())
        return create_model("Arguments", __config__=config, **fields)


def signature_of(function: Callable[..., Any], place: str) -> Signature:
    """Return the signature of `function`. Raises: UsageError naming `place` and the argument at fault."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise UsageError(f"tool {place}: it yields; a tool returns one result (show how far it is by ctx.progress)")
    try:
        hints = get_type_hints(_innermost(function), include_extras=True)
    except Exception as error:
        raise UsageError(f"tool {place}: its annotations cannot be read ({error}); "
                         "they must name types that the module imports when it runs") from None
    description, described = parse_docstring(inspect.getdoc(function) or "")
    declared = inspect.signature(function).parameters
    for name in described:
        if name not in declared:
            raise UsageError(f"tool {place}: its docstring describes {name!r}, which is no argument of it; "
                             f"its arguments: {', '.join(declared) or 'none'}")
    parameters: dict[str, Parameter] = {}
    context = None
    for name, parameter in declared.items():
        _check_kind(parameter, place)
        if name not in hints:
            raise UsageError(f"tool {place}: argument {name!r} has no annotation; write {name}: TYPE")
        if _is_context(hints[name]):
            context = name
            continue
        parameters[name] = Parameter(name, hints[name], parameter.default, described.get(name, ""))
        _check_default(parameters[name], place)
    is_async = inspect.iscoroutinefunction(_innermost(function))
    signature = Signature(place, description, parameters, context, is_async)
    for each in parameters.values():
        try:
            signature._make_model([each])
        except Exception as error:
            raise UsageError(f"tool {place}: argument {each.name!r} has a type that no JSON Schema can be made of: "
                             f"{str(error).splitlines()[0]}") from None
    return signature


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description in front of the first section, and what `Args:` says of each argument."""
    lines = inspect.cleandoc(text).splitlines()
    sections = [index for index, line in enumerate(lines) if _SECTION.fullmatch(line)]
    description = "\n".join(lines[: sections[0]] if sections else lines).strip()
    described: dict[str, str] = {}
    for start in sections:
        if not lines[start].startswith(("Args", "Arguments", "Parameters")):
            continue
        body = lines[start + 1 :]
        indent = next((len(line) - len(line.lstrip()) for line in body if line.strip()), 0)
        name = ""
        for line in body:
            if line.strip() and not line.startswith(" "):
                break
            found = _ARGUMENT.fullmatch(line.strip()) if len(line) - len(line.lstrip()) == indent else None
            if found:
                name = found[1].lstrip("*")
                described[name] = found[2]
            elif name and line.strip():
                described[name] = f"{described[name]} {line.strip()}".strip()
    return description, described


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    innermost: Callable[..., Any] = inspect.unwrap(function)
    return innermost


def _check_kind(parameter: inspect.Parameter, place: str) -> None:
    name = parameter.name
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**"
        raise UsageError(f"tool {place}: {stars}{name} cannot be described to a model; name each argument, or take a list")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise UsageError(f"tool {place}: argument {name!r} is positional-only; arguments are given by name: drop the `/`")


def _check_default(parameter: Parameter, place: str) -> None:
    if parameter.required:
        return
    from pydantic.fields import FieldInfo
    from pydantic_core import PydanticSerializationError, to_json

    if isinstance(parameter.default, FieldInfo):
        raise UsageError(f"tool {place}: argument {parameter.name!r} has Field(…) as its default, so that a direct call "
                         f"would get it; write {parameter.name}: Annotated[TYPE, Field(…)]")
    try:
        to_json(parameter.default)
    except (PydanticSerializationError, ValueError, RecursionError):
        raise UsageError(f"tool {place}: the default of argument {parameter.name!r} "
                         f"({type(parameter.default).__name__}) cannot be written as JSON; use None and make it inside") from None


def _is_context(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_context(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_context(each) for each in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, ToolContext)


def _closed(node: Any) -> Any:
    """Return a schema with every object closed, and without the titles that pydantic makes up."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs", "patternProperties"):
            closed[key] = {name: _closed(each) for name, each in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            closed[key] = value  # data, not schema
        elif not (key == "title" and isinstance(value, str)):
            closed[key] = _closed(value)
    # A mapping (`dict[str, int]`) says itself what its values are; that is as closed as it gets.
    mapping = "additionalProperties" in closed or "patternProperties" in closed
    if "properties" in closed or (closed.get("type") == "object" and not mapping):
        closed["additionalProperties"] = False
    return closed


def _values(model: BaseModel, parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """What was given; for the rest the function has its own defaults."""
    names = list(parameters)
    return {names[int(field[1:])]: getattr(model, field) for field in model.model_fields_set}


def _problem(error: Any) -> str:
    path = "/" + "/".join(str(part) for part in error["loc"])
    return f"{path}: {error['msg']}"
