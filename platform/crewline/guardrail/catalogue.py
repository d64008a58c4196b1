"""Check 1: the agent, its tools, and whether they are still those that the model saw.

A tool that does not exist is answered with the nearest one the agent has. Two signs say which: how well
the arguments fit (a model that invents a name still knows what it wants to pass), and the name's parts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from crewline_tools.base import ToolSpec
from crewline_tools.builtin import DELEGATE, HANDOFF

from crewline import events as ev
from crewline.roster import Roster
from crewline.schemas import ArgumentSchema

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_]+")
_SURE_MIN = 0.25  # below: no suggestion is better than this one
_LISTED_MAX = 20


class Offer:
    """A tool with everything about it that is compiled once."""

    __slots__ = ("digest", "flat", "schema", "spec", "words")

    def __init__(self, spec: ToolSpec) -> None:
        self.spec = spec
        self.digest = spec.digest()
        self.schema = ArgumentSchema(spec.parameters)
        self.words = words_of(spec.name)
        self.flat = _flat(spec.name)


class Catalogue:
    """What each agent of a crew may call, compiled.

    Raises: ValueError naming the tool whose parameters are no JSON Schema.
    """

    def __init__(self, roster: Roster) -> None:
        self._hashes = {name: roster.catalogue(name) for name in roster.agents}
        offers: dict[str, Offer] = {}
        self._offers: dict[str, dict[str, Offer]] = {}
        for agent in roster.agents:
            self._offers[agent] = {}
            for spec in roster.offers(agent):
                # `delegate` and `handoff` differ from agent to agent, so the digest tells them apart.
                known = offers.get(spec.name)
                offer = known if known is not None and known.spec == spec else _compiled(spec)
                offers[spec.name] = self._offers[agent][spec.name] = offer
        self._known = {*roster.tools, DELEGATE, HANDOFF}

    def find(self, agent: str, tool: str) -> Offer | None:
        """Return what `agent` is offered under that name, or None."""
        return self._offers.get(agent, {}).get(tool)

    def problems(self, agent: str, tool: str, seen: str, args: Mapping[str, Any] | None) -> list[ev.Reason]:
        """Return why `agent` cannot call `tool` now; [] if it can. `seen`: the hash of what the model saw."""
        offers = self._offers.get(agent)
        if offers is None:
            return [ev.Reason("agent.unknown", f"There is no agent {agent[:60]!r} in the crew any more.")]
        if tool not in offers:
            return [self._absent(agent, tool, args, offers)]
        if seen != self._hashes[agent]:
            say = f"The tools of {agent!r} changed after it chose {tool!r}; look at them again."
            return [ev.Reason("tool.changed", say, fix={"retry": True})]
        return []

    def _absent(
        self, agent: str, tool: str, args: Mapping[str, Any] | None, offers: Mapping[str, Offer]
    ) -> ev.Reason:
        if tool == DELEGATE:
            return ev.Reason("delegation.forbidden", f"The agent {agent!r} may not delegate work.")
        if tool == HANDOFF:
            return ev.Reason("handoff.forbidden", f"The agent {agent!r} may not hand the conversation over.")
        if tool in self._known:
            may = sorted(name for name, theirs in self._offers.items() if tool in theirs)
            who = ", ".join(may) or "nobody"
            say = f"The agent {agent!r} may not use {tool!r} (it is for: {who})."
            return ev.Reason("tool.forbidden", say, fix={"agents": may})
        near = nearest(tool, args, offers.values())
        if near is not None:
            say = f"There is no tool {tool[:60]!r}; the nearest is {near!r}."
            return ev.Reason("tool.unknown", say, fix={"use": near})
        return ev.Reason("tool.unknown", f"There is no tool {tool[:60]!r}.", fix={"one_of": sorted(offers)[:_LISTED_MAX]})


def _compiled(spec: ToolSpec) -> Offer:
    try:
        return Offer(spec)
    except ValueError as error:
        raise ValueError(f"tool {spec.name!r}: {error}") from None


def nearest(tool: str, args: Mapping[str, Any] | None, offers: Collection[Offer]) -> str | None:
    """Return the name of the offer that was surely or probably meant by `tool(args)`, or None."""
    best, best_score = None, _SURE_MIN
    flat, words = _flat(tool), words_of(tool)
    for offer in offers:
        name = _name_fit(flat, words, offer)
        score = name + 0.9 * _argument_fit(args, offer.schema) if args is not None else name
        if score > best_score:
            best, best_score = offer.spec.name, score
    return best


def _name_fit(flat: str, words: frozenset[str], offer: Offer) -> float:
    """From 0 to 2: how alike the spellings are, and how many whole words they share."""
    if flat == offer.flat:
        return 2.0
    spelling = difflib.SequenceMatcher(None, flat, offer.flat).ratio()
    both = len(words & offer.words)
    shared = 2 * both / (len(words) + len(offer.words)) if both else 0.0
    return spelling + shared if spelling >= 0.8 else 0.5 * spelling + shared


def _argument_fit(args: Mapping[str, Any] | None, schema: ArgumentSchema) -> float:
    """From 0 to 1.2: given arguments that the tool knows, required ones that are given, and a valid whole."""
    if args is None:
        return 0.0
    if not args:
        return 0.3 if not schema.required else 0.0
    known = sum(1 for name in args if name in schema.properties)
    there = sum(1 for name in schema.required if name in args)
    fit = 0.5 * known / len(args) + (0.3 * there / len(schema.required) if schema.required else 0.2 * (known > 0))
    if known == len(args):
        fit += 0.1 * known / max(1, len(schema.properties))
        if there == len(schema.required) and schema.fits(args):
            fit += 0.3
    return fit


def words_of(name: str) -> frozenset[str]:
    """Return the parts of a tool's name in lower case: `HNA_NEWS.searchAll` has hna, news, search, all."""
    return frozenset(word.lower() for word in _WORDS.findall(name))


def _flat(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
