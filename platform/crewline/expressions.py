"""CEL expressions, behind an interface of ours: what is wrong is known when a crew is loaded, not when it runs.

    Expression.compile(text, names=…)   checked: syntax, names, functions, bounds
    expression.truth(values)            True or False, anything else is an error
    expression.evaluate(values)         a JSON value
    Aggregate.compile(text)             `sum(event.amount)`: one function over the events of a window

Numbers in `values` become doubles, so `args.amount > 50` and `> 50.0` mean the same. `a || b` is true if one
side is, even if the other fails: write guards as conditions to deny on.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from crewline import expression_text as text_of
from crewline.errors import CrewlineError

if TYPE_CHECKING:
    from cel import Program

FUNCTIONS = frozenset({
    "bytes", "contains", "double", "duration", "dyn", "endsWith", "getDate", "getDayOfMonth", "getDayOfWeek",
    "getDayOfYear", "getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "has",
    "int", "matches", "size", "startsWith", "string", "timestamp", "type", "uint",
})  # fmt: skip
AGGREGATES = ("count", "sum", "avg", "min", "max", "first", "last", "distinct", "stddev", "slope")
_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "string", "uint"})  # as in `type(x) == int`
_EXACT = 2**53  # doubles hold every whole number up to here
_INT64 = 2**63
_DEPTH_MAX = 64
_SHOWN = 80
_AT = re.compile(r"<input>:(\d+):(\d+): (.*)")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_AGGREGATE = re.compile(r"\s*([A-Za-z_]\w*)\s*\(", re.ASCII)


class ExpressionError(CrewlineError):
    """An expression cannot be compiled, or gives no value for what it was given.

    `line` and `column` count from 1 in the expression's own text; None if there is no single place.
    """

    code = "expression"
    exit_code = 3

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@dataclass(frozen=True)
class Expression:
    """A compiled expression; `compile` makes one. `roots` are the names it reads."""

    text: str
    roots: frozenset[str]
    _program: Program
    _read: tuple[text_of.Name, ...]

    @classmethod
    def compile(cls, text: str, *, names: Collection[str]) -> Expression:
        """Return the expression, which may read `names` and nothing else.

        Raises: ExpressionError for bad syntax, an unknown name or function, or text beyond the bounds.
        """
        known = frozenset(names)
        try:
            tokens = text_of.read(text)
            program = _compiled(text, tokens)
            read = text_of.names(tokens)
        except text_of.Oddity as error:
            message = f"not a valid CEL expression: {error.message}" if error.message else None
            raise _broken(text, *_place(text, error.start), message) from None
        _check_names(text, read, known)
        _check_functions(program, tokens, text)
        roots = frozenset(name.root for name in read) & known
        if (number := text_of.mixed(tokens, roots)) is not None:
            line, column = _place(text, number.start)
            raise ExpressionError(
                f"every number in {', '.join(sorted(roots))} is a double, and CEL does not reckon with a mixture; "
                f"write {number.text.rstrip('uU')}.0",
                line=line, column=column,
            )  # fmt: skip
        return cls(text, roots, program, tuple(read))

    def fields(self, root: str) -> frozenset[str] | None:
        """Return the fields of `root` that are read (`order` of `facts.order.total`); None if it is read whole."""
        fields = {name.field for name in self._read if name.root == root}
        return None if None in fields else frozenset(field for field in fields if field is not None)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Return the JSON value of the expression. A plain path gives exactly what is there, numbers too.

        Args: values: one JSON value for each name; those that are not read are not looked at.
        Raises: ExpressionError if it has no value, or one that JSON cannot hold.
        """
        if self._is_path:
            return self._follow(values)
        return _plain(self._execute(values))

    def truth(self, values: Mapping[str, Any]) -> bool:
        """Return what the expression says. Raises: ExpressionError if it fails or is neither true nor false."""
        result = self._execute(values)
        if not isinstance(result, bool):
            raise ExpressionError(f"gives {_kind(result)}, not true or false: {_shown(self.text)}")
        return result

    @cached_property
    def _is_path(self) -> bool:
        return _PATH.fullmatch(self.text.strip()) is not None and bool(self.roots)

    def _follow(self, values: Mapping[str, Any]) -> Any:
        # Not through the engine: a double would lose the end of a long order number.
        value: Any = values
        for part in self.text.strip().split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ExpressionError(f"there is no {part!r}: {_shown(self.text)}")
            value = value[part]
        return value

    def _execute(self, values: Mapping[str, Any]) -> Any:
        try:
            given = {name: _doubles(values[name], 0) for name in self.roots}
            return self._program.execute(given)
        except KeyError as error:
            raise ExpressionError(f"there is no {error}: {_shown(self.text)}") from None
        except ExpressionError:
            raise
        except BaseException as error:
            _reraise_ours(error)
            say = str(error).split("\n", 1)[0].split(". ", 1)[0][:200]
            raise ExpressionError(f"{say}: {_shown(self.text)}") from None


@dataclass(frozen=True)
class Aggregate:
    """One function over the events of a window: `count()`, `sum(event.amount)`. `of` is None for `count()`."""

    function: str
    of: Expression | None

    @classmethod
    def compile(cls, text: str, *, names: Collection[str] = ("event",)) -> Aggregate:
        """Return the aggregate. Raises: ExpressionError unless it is one call of one of `AGGREGATES`."""
        known = ", ".join(AGGREGATES)
        call = _AGGREGATE.match(text)
        if call is None or not text.rstrip().endswith(")"):
            raise ExpressionError(f"an aggregate is one call, such as sum(event.amount); use one of: {known}", column=1)
        function = call.group(1)
        if function not in AGGREGATES:
            raise ExpressionError(
                f"unknown aggregate {function!r}{near(function, AGGREGATES)} (known: {known})", line=1, column=call.start(1) + 1
            )
        # Spaces where the call was: columns stay right.
        inner = " " * call.end() + text.rstrip()[call.end() : -1]
        if not inner.strip():
            if function != "count":
                raise ExpressionError(f"{function}() of what? write {function}(event.…)", column=call.end())
            return cls(function, None)
        if function == "count":
            raise ExpressionError("count() takes nothing: it counts events", column=call.end() + 1)
        return cls(function, Expression.compile(inner, names=names))


def near(word: str, known: Collection[str]) -> str:
    """Return "; did you mean 'args'?" for the one of `known` that is closest to `word`, or ""."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _compiled(text: str, tokens: list[text_of.Token]) -> Program:
    try:
        program: Program = _engine().compile(text)
    except BaseException as error:
        _reraise_ours(error)
        found = _AT.search(str(error))
        if found is None or not tokens:
            raise _broken(text, 1, 1) from None
        line, column = int(found.group(1)), int(found.group(2))
        if (line, column) > _place(text, tokens[-1].start):
            line, column = _place(text, tokens[-1].start)  # nothing follows where something should
        raise _broken(text, line, column) from None
    return program


def _check_names(text: str, read: list[text_of.Name], known: frozenset[str]) -> None:
    for name in read:
        if name.root not in known and name.root not in _TYPES:
            line, column = _place(text, name.start)
            listed = ", ".join(sorted(known))
            message = f"unknown name {name.root!r} in expression{near(name.root, known)} (known: {listed})"
            raise ExpressionError(message, line=line, column=column)


def _check_functions(program: Program, tokens: list[text_of.Token], text: str) -> None:
    for function in program.functions():
        if function[0].isalpha() and function not in FUNCTIONS:
            start = next((token.start for token in tokens if token.text == function), 0)
            line, column = _place(text, start)
            message = f"unknown function {function!r} in expression{near(function, FUNCTIONS)}"
            raise ExpressionError(message, line=line, column=column)


def _broken(text: str, line: int, column: int, message: str | None = None) -> ExpressionError:
    where = f"column {column}" if line == 1 else f"line {line}, column {column}"
    say = message or f"not a valid CEL expression near {where}: {_shown(text)}"
    return ExpressionError(say, line=line, column=column)


def _place(text: str, start: int) -> tuple[int, int]:
    line = text.count("\n", 0, start)
    return line + 1, start - text.rfind("\n", 0, start)


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else flat[: _SHOWN - 1] + "…"


def _doubles(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        # A long number stays whole, since a double would make two order numbers one.
        return float(value) if -_EXACT <= value <= _EXACT or not -_INT64 <= value < _INT64 else value
    if depth >= _DEPTH_MAX:
        raise ExpressionError(f"a value is more than {_DEPTH_MAX} levels deep")
    if isinstance(value, Mapping):
        return {str(key): _doubles(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_doubles(each, depth + 1) for each in value]
    raise ExpressionError(f"a value is {_kind(value)}; expressions take JSON values")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)  # JSON has one kind of number; a tool that takes a whole one must get it
    if value is None or isinstance(value, bool | int | str | float):
        return value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(each) for key, each in value.items()}
    raise ExpressionError(f"gives {_kind(value)}; wrap it in string(…)")


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def _reraise_ours(error: BaseException) -> None:
    """Raise `error` again unless it is the engine's. A panic in Rust is no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _engine() -> Any:
    """Return the engine: the extension alone.

    `import cel` would also import its command line with prompt_toolkit and pygments: 340 ms instead of 15.
    """
    import importlib.util
    import sys
    from importlib.machinery import PathFinder

    if (loaded := sys.modules.get("cel.cel")) is not None:
        return loaded
    package = importlib.util.find_spec("cel")
    found = PathFinder.find_spec("cel.cel", package.submodule_search_locations if package else None)
    if found is None or found.loader is None:  # packed in some other way
        import cel

        return cel
    module = importlib.util.module_from_spec(found)
    sys.modules["cel.cel"] = module  # so that a later `import cel` finds this one
    found.loader.exec_module(module)
    return module
