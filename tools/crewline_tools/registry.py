"""The tools of a crew: named by reference in its file, found by entry point, or added by hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from crewline.errors import NotFound, UsageError

from crewline_tools.base import ToolEffect, ToolSpec
from crewline_tools.functions import Reconcile, ToolFunction, check_retries, make, place_of, tool_of
from crewline_tools.results import describe

ENTRY_POINTS = "crewline.tools"
LEVELS: tuple[ToolEffect, ...] = ("read", "write", "destructive")


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What a crew file says about a tool. None: it says nothing, and the decorator's word holds.

    `at` is where it says so (`crew.yaml:31`), for messages.
    """

    effect: ToolEffect | None = None
    idempotent: bool | None = None
    timeout_s: float | None = None
    retries: int | None = None
    pool: str | None = None
    inject: Mapping[str, str] | None = None
    auto_amend: bool | None = None
    on_guard_down: Literal["deny", "allow"] | None = None
    at: str = "the crew file"


class ToolRegistry:
    """Tools by name; a name stands for one function."""

    def __init__(self) -> None:
        self._tools: dict[str, ToolFunction] = {}

    def __getitem__(self, name: str) -> ToolFunction:
        """Return the tool of that name. Raises: NotFound naming those there are."""
        if name not in self._tools:
            known = ", ".join(sorted(self._tools)) or "none"
            raise NotFound(f"there is no tool {name!r}; registered are: {known}")
        return self._tools[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._tools))

    def __len__(self) -> int:
        return len(self._tools)

    def add(
        self,
        function: Callable[..., Any],
        *,
        effect: ToolEffect | None = None,
        idempotent: bool | None = None,
        timeout: str | None = None,
        retries: int = 0,
        name: str | None = None,
        reconcile: Reconcile | None = None,
        auto_amend: bool = False,
    ) -> ToolFunction:
        """Add a function: one with `@tool` as it is, any other with what is said here. The function is left alone.

        Raises: UsageError if another function has the name, or `effect` is said by nobody.
        """
        made = tool_of(function)
        if effect is not None:
            made = make(function, effect=effect, idempotent=idempotent, timeout=timeout, retries=retries, name=name,
                        reconcile=reconcile, auto_amend=auto_amend)
        elif made is None:
            raise UsageError(f"tool {place_of(function)}: it has no @tool; say what it does to the world: "
                             'add(fn, effect="read"), "write" or "destructive"')
        elif name is not None:
            made = replace(made, spec=replace(made.spec, name=name))
        return self.put(made)

    def put(self, made: ToolFunction) -> ToolFunction:
        """Add a tool as it is. Raises: UsageError naming both places if its name stands for another function."""
        name = made.spec.name
        there = self._tools.get(name)
        if there is not None and there.function is not made.function:
            raise UsageError(f"two tools are called {name!r}: {there.place} and {made.place}; "
                             'rename one: @tool(name="…")')
        self._tools[name] = made
        return made

    def load(self, reference: str, options: ToolOptions = ToolOptions(), *, name: str | None = None) -> ToolFunction:
        """Add the function that `reference` names, with what the crew file says of it. Raises: UsageError."""
        return self.put(merge(resolve(reference, options), options, name=name))

    def load_entry_points(self) -> list[str]:
        """Add every tool that an installed package offers (group `crewline.tools`); return their names.

        An entry point names a function with `@tool`, or a module, which stands for every one in it.
        """
        from importlib.metadata import entry_points

        added = []
        for point in entry_points(group=ENTRY_POINTS):
            where = f"entry point {point.name!r} ({point.value}) of {point.dist.name if point.dist else 'a package'}"
            try:
                found = point.load()
            except Exception as error:
                raise UsageError(f"{where} cannot be loaded: {describe(error)}; repair or uninstall the package") from error
            offered = [found] if tool_of(found) else [each for each in vars(found).values() if tool_of(each)] if (
                hasattr(found, "__dict__")) else []
            if not offered:
                raise UsageError(f"{where} is no function with @tool, and no module that has one")
            added += [self.add(function).spec.name for function in offered]
        return added

    def specs(self) -> dict[str, ToolSpec]:
        """Return every tool's specification by name."""
        return {name: made.spec for name, made in sorted(self._tools.items())}

    def of_pool(self, pool: str) -> dict[str, ToolFunction]:
        """Return the tools that run in `pool`."""
        return {name: made for name, made in sorted(self._tools.items()) if made.spec.pool == pool}


def resolve(reference: str, options: ToolOptions = ToolOptions()) -> ToolFunction:
    """Return the tool at `package.module:function`.

    A function without `@tool` needs `effect` from `options`.

    Raises: UsageError that names the reference and what to do.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path or any(not part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise UsageError(f"python: {reference!r} is no reference; write package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"python: {reference!r}: there is no module {error.name!r}",
                hint="start crewline in the folder that holds it, or install its package into this environment",
            ) from None
        raise UsageError(f"python: {reference!r}: importing {module_name} failed: it needs {error.name!r}; "
                         f"install it into this environment") from error
    except UsageError:
        raise  # a tool of that module is wrong, and says itself what and where
    except Exception as error:
        raise UsageError(f"python: {reference!r}: importing {module_name} failed: {describe(error)}; "
                         f"try `python -c 'import {module_name}'`") from error
    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            offered = ", ".join(sorted(name for name, each in vars(module).items() if tool_of(each))) or "none"
            raise UsageError(f"python: {reference!r}: module {module_name} has no {path!r}; its tools: {offered}") from None
    if (made := tool_of(found)) is not None:
        return made
    if not callable(found):
        raise UsageError(f"python: {reference!r} is {type(found).__name__}, not a function")
    if options.effect is None:
        raise UsageError(f"python: {reference!r} has no @tool; give it one, or say `effect:` at {options.at}")
    return make(found, effect=options.effect, idempotent=options.idempotent)


def merge(made: ToolFunction, options: ToolOptions, *, name: str | None = None) -> ToolFunction:
    """Return the tool with what a crew file says of it; `name` is what the file calls it.

    `effect` may be raised (read → write → destructive) and `idempotent` be taken back, never the other way
    round: what the author knows to be dangerous stays so.

    Raises: UsageError naming both places.
    """
    spec, at = made.spec, options.at
    effect = options.effect or spec.effect
    if LEVELS.index(effect) < LEVELS.index(spec.effect):
        raise UsageError(f"tool {spec.name!r}: {at} says effect {effect}, {made.place} says {spec.effect}; "
                         "a crew file may only raise it")
    if options.idempotent and made.stated_idempotent is False:
        raise UsageError(f"tool {spec.name!r}: {at} says idempotent, {made.place} says it is not; "
                         "only the function's author can say so")
    idempotent = spec.idempotent if options.idempotent is None else options.idempotent
    inject = spec.inject if options.inject is None else options.inject
    merged = replace(
        spec,
        name=name or spec.name,
        parameters=made.signature.schema(tuple(inject)),
        effect=effect,
        idempotent=idempotent,
        timeout_s=_or(options.timeout_s, spec.timeout_s),
        retries=_or(options.retries, spec.retries),
        pool=_or(options.pool, spec.pool),
        inject=dict(inject),
        auto_amend=_or(options.auto_amend, spec.auto_amend),
        on_guard_down=_or(options.on_guard_down, spec.on_guard_down),
    )
    check_retries(merged, f"{made.place} ({at})")
    if merged.on_guard_down == "allow" and merged.effect != "read":
        raise UsageError(f"tool {merged.name!r}: {at} says on_guard_down: allow, which only a read tool may")
    return replace(made, spec=merged)


def _or(said: Any, otherwise: Any) -> Any:
    return otherwise if said is None else said
