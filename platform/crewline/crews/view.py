"""A tolerant view of a crew file: whatever is there can be asked, what is not there is empty.

The checks between keys read this rather than the models, so that they also speak when a field elsewhere has
the wrong shape: all problems come at once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from crewline.crews.problems import Path, Place, Problem, Severity, dotted
from crewline.crews.values import Referenced
from crewline.crews.yaml_text import Node
from crewline.expressions import Aggregate, Expression, ExpressionError


@dataclass(frozen=True, slots=True)
class View:
    """A value of the file, or a place where none is. Findings go to the one list `found`."""

    node: Node | None
    path: Path
    found: list[Problem]

    def __getitem__(self, name: str | int) -> View:
        value = self.node.value if self.node is not None else None
        below = value.get(name) if isinstance(value, dict) else None
        return View(below, (*self.path, name), self.found)

    def at(self, *path: str) -> View:
        """Return the value at a path below this one."""
        view = self
        for name in path:
            view = view[name]
        return view

    @property
    def there(self) -> bool:
        """Whether the key is written (even with nothing in it)."""
        return self.node is not None

    @property
    def entries(self) -> dict[str, View]:
        """The entries of a map, else none."""
        value = self.node.value if self.node is not None else None
        return {name: self[name] for name in value} if isinstance(value, dict) else {}

    @property
    def items(self) -> list[View]:
        """The items of a list, else none."""
        value = self.node.value if self.node is not None else None
        if not isinstance(value, list):
            return []
        return [View(node, (*self.path, index), self.found) for index, node in enumerate(value)]

    @property
    def text(self) -> str | None:
        """The text, or None if there is none, or it waits for a variable."""
        value = self.node.value if self.node is not None else None
        return value if isinstance(value, str) and not (isinstance(value, Referenced) and value.missing) else None

    @property
    def number(self) -> float | None:
        value = self.node.value if self.node is not None else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def says(self, word: str | bool) -> bool:
        """Whether the value is exactly `word`."""
        return self.node is not None and self.node.value == word and isinstance(self.node.value, type(word))

    @property
    def key(self) -> Place:
        """Where the key stands."""
        assert self.node is not None, f"{dotted(self.path)} is not written"
        return self.node.key

    @property
    def place(self) -> Place:
        """Where the value stands."""
        assert self.node is not None, f"{dotted(self.path)} is not written"
        return self.node.place

    def say(self, message: str, *, at: Place | None = None, severity: Severity = "error") -> None:
        """Note a finding on this path, at its value unless `at` says otherwise."""
        self.found.append(Problem.at(at or self.place, dotted(self.path), message, severity))

    def expression(self, names: Collection[str]) -> Expression | None:
        """Return the CEL expression here, compiled; note what is wrong with it."""
        text = self.text
        if text is None or "${" in text:  # the second is said already
            return None
        try:
            return Expression.compile(text, names=names)
        except ExpressionError as error:
            self.say(error.message)
            return None

    def aggregate(self) -> None:
        """Note what is wrong with the aggregate here."""
        if (text := self.text) is not None and "${" not in text:
            try:
                Aggregate.compile(text)
            except ExpressionError as error:
                self.say(error.message)
