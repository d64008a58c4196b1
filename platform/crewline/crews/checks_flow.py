"""Triggers: one way to fire, windows that make sense, expressions that see what is there by then."""

from __future__ import annotations

from crewline.crews.known import Known
from crewline.crews.values import seconds_of
from crewline.crews.view import View


def check_triggers(known: Known) -> None:
    """Triggers."""
    for trigger in known.root["triggers"].entries.values():
        _check_intents(known, trigger)
        _check_window(trigger)
        _check_expressions(trigger)


def _check_intents(known: Known, trigger: View) -> None:
    known.capability(trigger["intent"])
    for each in trigger["scatter"].items:
        known.capability(each)
    known.capability(trigger.at("gather", "intent"))
    intent, scatter, gather = trigger["intent"].there, trigger["scatter"].there, trigger["gather"].there
    if not trigger.entries:
        return
    if intent == scatter:
        trigger.say("a trigger has either 'intent', or 'scatter' with 'gather'", at=trigger.key)
    elif scatter != gather:
        there, absent = ("scatter", "gather") if scatter else ("gather", "scatter")
        trigger[there].say(f"{there!r} goes with {absent!r}", at=trigger[there].key)


def _check_window(trigger: View) -> None:
    window, aggregate = trigger["window"], trigger["aggregate"]
    if aggregate.entries and not window.there:
        aggregate.say("an 'aggregate' needs a 'window' to go over", at=aggregate.key)
    if window.there and not aggregate.there:
        window.say("a 'window' needs an 'aggregate', such as {n: count()}", at=window.key)
    size, advance = (seconds_of(window[name].text or "") for name in ("size", "advance"))
    if size is not None and advance is not None and advance > size:
        window["advance"].say("larger than 'size': events between the windows would be lost")
    for name, each in aggregate.entries.items():
        each.aggregate()
        if name in ("event", "window"):
            each.say(f"{name!r} is taken: expressions know the {name} by it", at=each.key)


def _check_expressions(trigger: View) -> None:
    after = ("event", *trigger["aggregate"].entries)
    for name in ("key", "time"):
        trigger[name].expression(("event",))
    for name in ("when", "user", "conversation"):
        trigger[name].expression(after)
    for each in trigger["input"].entries.values():
        each.expression((*after, "window") if trigger["window"].there else after)
