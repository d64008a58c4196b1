"""Triggers: records of outside topics become intents.

    outside topic ──Intake──▶ <ns>.triggers ──windows, firings──▶ <ns>.conversations

rules.py       a trigger, compiled: topic, key, windows, condition, what is asked for
aggregates.py  count, sum, slope and their like, one event at a time
windows.py     which windows hold an event, and when they close
state.py       what is known of one key
folding.py     records of `<ns>.triggers` into that state: windows, firings, answers
view.py        the state as an engine is given it, and what it asks for
role.py        Triggers, the role: publishes intents, keeps places, says when time has passed
gate.py        how many runs of one trigger are open at once
taking.py      an outside record into an event
taken.py       how far outside topics were taken
intake.py      Intake: reads an outside topic into `<ns>.triggers`
letters.py     dead letters: what could not be used
"""

from crewline.triggers.intake import Intake as Intake
from crewline.triggers.role import Triggers as Triggers
from crewline.triggers.rules import Gathering as Gathering
from crewline.triggers.rules import TriggerRule as TriggerRule
from crewline.triggers.rules import WindowRule as WindowRule
from crewline.triggers.taken import TakenUntil as TakenUntil
