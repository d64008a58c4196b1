"""Agents and tools: what they name must be there, and what may run twice must be safe to."""

from __future__ import annotations

from crewline.crews.known import BUILTIN, Known
from crewline.crews.problems import did_you_mean
from crewline.crews.view import View

INJECT_NAMES = ("user", "run", "agent")


def check_agents(known: Known) -> None:
    """Agents: models, brains, tools, delegates, handoffs."""
    for name, agent in known.agents.items():
        for tool in agent["tools"].items:
            known.tool(tool)
        for other in agent["handoffs"].items:
            known.agent(other)
            if other.text == name:
                other.say("an agent cannot hand over to itself")
        for wanted in agent["delegates"].items:
            _check_delegate(known, wanted)
        for names in ("tools", "delegates", "handoffs"):
            _check_unique(agent[names])
        _check_model(known, agent)
        _check_brain(agent)


def check_tools(known: Known) -> None:
    """Tools, those of MCP servers too: retries, policies, injected arguments."""
    for name, tool in known.tools.items():
        for argument in tool["inject"].entries.values():
            argument.expression(INJECT_NAMES)
        effect, retries = tool["effect"].text, tool["retries"].number
        if effect in ("write", "destructive") and retries and not tool["idempotent"].says(True):
            tool.say(
                f"retries: {retries:g} on a {effect!r} tool may run it twice; "
                "set 'idempotent: true' if that is safe, or 'retries: 0'",
                at=tool.key,
            )
        if effect == "destructive" and not _covered(known, name):
            tool.say(
                "no policy covers this 'destructive' tool, so every call of it would be denied; "
                f"add one with 'tools: [{name}]' under 'guardrails.policies'",
                at=tool.key,
            )
    for name in BUILTIN:
        if (tool := known.root["tools"][name]).there:
            tool.say(f"{name!r} is a built-in tool; choose another name", at=tool.key)
    for server in known.root["mcp_servers"].entries.values():
        _check_server(server)


def _check_delegate(known: Known, wanted: View) -> None:
    name = wanted.text
    if name is not None and ":" not in name and name not in known.capabilities:
        meant = did_you_mean(name, known.capabilities) or f"; if another crew does, write 'crew:{name}'"
        wanted.say(f"no agent of this crew offers {name!r}{meant}", severity="warning")


def _check_unique(names: View) -> None:
    seen = set()
    for each in names.items:
        if each.text in seen:
            each.say(f"{each.text!r} is listed twice")
        seen.add(each.text)


def _check_model(known: Known, agent: View) -> None:
    model = agent["model"]
    if model.text is not None and model.text not in known.models:
        model.say(f"model {model.text!r} is not defined{did_you_mean(model.text, known.models)}")
    elif not model.there and known.models and "default" not in known.models:
        agent.say("there is no model 'default', so 'model' must say which one", at=agent.key)


def _check_brain(agent: View) -> None:
    brain, factory = agent["brain"], agent["factory"]
    if brain.text in ("langchain", "autogen") and not factory.there:
        brain.say(f"a {brain.text!r} brain needs 'factory: package.module:name', which returns the agent")
    elif factory.there and brain.text in (None, "native"):
        factory.say("'factory' goes with 'brain: langchain' or 'brain: autogen'", at=factory.key)


def _covered(known: Known, tool: str) -> bool:
    for policy in known.root.at("guardrails", "policies").entries.values():
        if policy["stage"].there and not policy["stage"].says("tool_call"):
            continue
        tools = policy["tools"].items
        if not tools or any(each.text == tool for each in tools):
            return True
    return False


def _check_server(server: View) -> None:
    command, url = server["command"], server["url"]
    if command.there == url.there and server.entries:
        server.say("an MCP server has either 'command' or 'url'", at=server.key)
    elif url.there and server["env"].there:
        server["env"].say("'env' goes with 'command'; a server by 'url' takes 'headers'", at=server["env"].key)
    elif command.there and server["headers"].there:
        server["headers"].say("'headers' goes with 'url'; a 'command' takes 'env'", at=server["headers"].key)
