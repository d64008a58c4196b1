"""Overlays (`-f prod.yaml`): they may change where a crew runs, not what it does."""

from __future__ import annotations

import typing

from crewline.crews.models import Model
from crewline.crews.models_bus import Bus
from crewline.crews.problems import Problem, did_you_mean
from crewline.crews.yaml_text import Node

SECTIONS = ("bus", "models", "memory", "console")
# The word that chooses a variant, and the fields of each.
_VARIANTS = {
    "kind": {model.model_fields["kind"].annotation: model for model in typing.get_args(typing.get_args(Bus)[0])},
    "provider": {model.model_fields["provider"].annotation: model for model in typing.get_args(typing.get_args(Model)[0])},
}
_FIELDS = {
    (word, typing.get_args(literal)[0]): frozenset(model.model_fields)
    for word, variants in _VARIANTS.items()
    for literal, model in variants.items()
}


def overlay_problems(over: Node) -> list[Problem]:
    """Return what an overlay may not say."""
    if not isinstance(over.value, dict):
        return [Problem.at(over.place, "", f"an overlay is a map of {', '.join(SECTIONS)}")]
    return [
        Problem.at(node.key, name, f"an overlay may set {', '.join(SECTIONS)} only{did_you_mean(name, SECTIONS)}")
        for name, node in over.value.items()
        if name not in SECTIONS
    ]


def merged(base: Node, over: Node) -> Node:
    """Return `base` with `over` laid on it: maps key by key, all else replaced. Each value keeps its own place.

    Where `over` chooses another variant (`kind: kafka` over `embedded`), fields that the new one does not
    have are left behind.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    kept = dict(base.value)
    for word in _VARIANTS:
        chosen, before = over.value.get(word), base.value.get(word)
        if chosen is not None and before is not None and isinstance(chosen.value, str) and chosen.value != before.value:
            fields = _FIELDS.get((word, chosen.value))
            kept = {name: node for name, node in kept.items() if fields is None or name in fields}
    for name, node in over.value.items():
        kept[name] = merged(kept[name], node) if name in kept else node
    return Node(kept, over.place, over.key)
