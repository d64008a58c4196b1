"""What must hold between the keys of a crew file. The shape of each key is the models' business.

checks_agents.py  agents: tools, models, handoffs, delegates; the tools themselves
checks_guard.py   facts, policies, limits, budgets, approvals
checks_flow.py    triggers
checks_where.py   bus, models, memory, console

`Known` is what the checks ask about the crew as a whole.
"""

from __future__ import annotations

from pathlib import Path as FilePath

from crewline.crews.checks_agents import check_agents, check_tools
from crewline.crews.checks_flow import check_triggers
from crewline.crews.checks_guard import check_guardrails
from crewline.crews.checks_where import check_where
from crewline.crews.known import Known
from crewline.crews.problems import Problem
from crewline.crews.view import View
from crewline.crews.yaml_text import Node


def cross_problems(root: Node, folder: FilePath, *, offline: bool) -> list[Problem]:
    """Return every finding between keys; a value of the wrong shape is passed over.

    `folder` is where `script` paths start.
    """
    found: list[Problem] = []
    known = Known(View(root, (), found), folder, offline)
    for check in (check_where, check_agents, check_tools, check_guardrails, check_triggers):
        check(known)
    return found
