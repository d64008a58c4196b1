"""What is declared in a crew file, as the checks ask for it."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path as FilePath

from crewline.crews.problems import did_you_mean
from crewline.crews.view import View

BUILTIN = ("delegate", "handoff")  # tools that the worker runs itself


class Known:
    """The crew file as a whole. `folder` is where its scripts are; `offline`, whether only those are used."""

    def __init__(self, root: View, folder: FilePath, offline: bool) -> None:
        self.root = root
        self.folder = folder
        self.offline = offline

    @cached_property
    def agents(self) -> dict[str, View]:
        return self.root["agents"].entries

    @cached_property
    def tools(self) -> dict[str, View]:
        """Every tool by the name that agents use, those of MCP servers as `server.tool`."""
        tools = dict(self.root["tools"].entries)
        for server, view in self.root["mcp_servers"].entries.items():
            tools |= {f"{server}.{name}": tool for name, tool in view["tools"].entries.items()}
        return tools

    @cached_property
    def models(self) -> dict[str, View]:
        return self.root["models"].entries

    @cached_property
    def capabilities(self) -> frozenset[str]:
        return frozenset(name for agent in self.agents.values() for name in agent["capabilities"].entries)

    @cached_property
    def approvers(self) -> bool:
        return bool(self.root.at("guardrails", "approvals", "approvers").items)

    def tool(self, view: View, *, builtin: bool = False) -> View | None:
        """Return the tool that `view` names, or note that there is none."""
        if (name := view.text) is None:
            return None
        if name in self.tools:
            return self.tools[name]
        if not (builtin and name in BUILTIN):
            view.say(f"tool {name!r} is not defined{did_you_mean(name, self.tools)}")
        return None

    def agent(self, view: View) -> None:
        """Note it if `view` names no agent."""
        if (name := view.text) is not None and name not in self.agents:
            view.say(f"agent {name!r} is not defined{did_you_mean(name, self.agents)}")

    def capability(self, view: View) -> None:
        """Note it if no agent of this crew offers the capability; another crew's (`crew:capability`) may."""
        if (name := view.text) is not None and ":" not in name and name not in self.capabilities:
            view.say(f"capability {name!r} is not defined{did_you_mean(name, self.capabilities)}")


def listed(names: Collection[str]) -> str:
    """Return names as a message lists them."""
    return ", ".join(sorted(names)) or "none"
