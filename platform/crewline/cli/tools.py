"""`crewline tools`: what the tools of a crew are, and one called by hand, through the guardrail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crewline.cli import settings as globals_
from crewline.cli.groups import new_app
from crewline.errors import NotFound

if TYPE_CHECKING:
    from crewline_tools.base import ToolSpec

    from crewline.cli.output import Output
    from crewline.crews.running import Crew

app = new_app("The tools of a crew. Imports the functions that the crew file names.")

File = Annotated[str | None, typer.Option("--file", metavar="CREW", help="The crew file; default: ./crew.yaml.")]
Overlay = Annotated[list[Path] | None, typer.Option("-f", "--overlay", help="Lay this file over the crew file.")]


def _crew(file: str | None, overlay: list[Path] | None) -> Crew:
    from crewline.cli.session import crew_file
    from crewline.crews.running import Crew

    return Crew.load(crew_file(file), overlays=overlay or (), offline=True)


@app.command("list")
def list_tools(context: typer.Context, file: File = None, overlay: Overlay = None) -> None:
    """List the tools: what each does to the world, who may call it.

    Example: crewline tools list --file crew.yaml
    """
    from crewline.cli.output import Output
    from crewline.cli.text import cut, duration

    crew = _crew(file, overlay)
    out = Output(globals_.of(context))
    specs = [crew.roster.tools[name] for name in sorted(crew.roster.tools)]
    if out.settings.json:
        out.document({"tools": [document(crew, spec) for spec in specs]})
    elif not specs:
        out.say("this crew has no tools; declare one under `tools:`")
    else:
        rows = [
            [spec.name, spec.effect, "yes" if spec.safe else "no", spec.pool, duration(spec.timeout_s),
             ", ".join(_callers(crew, spec.name)) or "nobody", cut(spec.description.partition("\n")[0], 50)]
            for spec in specs
        ]
        out.table(("tool", "effect", "repeatable", "pool", "timeout", "agents", "says"), rows)


def _callers(crew: Crew, tool: str) -> list[str]:
    return [name for name, agent in crew.roster.agents.items() if tool in agent.tools]


def document(crew: Crew, spec: ToolSpec) -> dict[str, Any]:
    """Return a tool for programs."""
    return {
        "name": spec.name, "description": spec.description, "effect": spec.effect, "idempotent": spec.idempotent,
        "timeout_s": spec.timeout_s, "retries": spec.retries, "pool": spec.pool, "inject": dict(spec.inject),
        "parameters": spec.parameters, "digest": spec.digest(), "agents": _callers(crew, spec.name),
    }


def _spec(crew: Crew, name: str) -> ToolSpec:
    from crewline.crews.problems import did_you_mean

    if name not in crew.roster.tools:
        raise NotFound(f"there is no tool {name!r}{did_you_mean(name, crew.roster.tools)}", hint="crewline tools list")
    return crew.roster.tools[name]


@app.command("show")
def show(
    context: typer.Context, name: Annotated[str, typer.Argument(help="The tool.")], file: File = None,
    overlay: Overlay = None,
) -> None:
    """Show a tool: what the model sees of it, and what the platform knows.

    Example: crewline tools show issue_refund
    """
    import json

    from crewline.cli.output import Output

    crew = _crew(file, overlay)
    spec = _spec(crew, name)
    out = Output(globals_.of(context))
    if out.settings.json:
        out.document(document(crew, spec))
        return
    out.put(f"{spec.name}  {spec.effect}{', idempotent' if spec.idempotent else ''}")
    if spec.description:
        out.put(f"\n{spec.description}\n")
    rows = [("pool", spec.pool), ("timeout", f"{spec.timeout_s:g} s"), ("retries", str(spec.retries)),
            ("agents", ", ".join(_callers(crew, name)) or "nobody"),
            *((f"{argument} =", expression) for argument, expression in spec.inject.items())]
    for title, value in rows:
        out.put(f"{title:<10} {value}")
    out.put("\n" + json.dumps(spec.parameters, indent=2, ensure_ascii=False))


@app.command("call")
def call(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The tool.")],
    arguments: Annotated[str, typer.Argument(help="Its arguments, as JSON.")] = "{}",
    agent: Annotated[str | None, typer.Option(help="As whom; default: the first agent with that tool.")] = None,
    user: Annotated[str | None, typer.Option(help="On whose behalf.")] = None,
    file: File = None,
    overlay: Overlay = None,
) -> None:
    """Call a tool by hand, in this process, if the guardrail allows it. Its result goes to stdout.

    No run, and nothing in the log. Denied: exit code 6. Needs approval: exit code 7, and nothing has run.

    Example: crewline tools call find_order '{"order_id": "A-1001"}' --user u-7
    """
    from crewline.cli import logs
    from crewline.cli.output import Output

    out = Output(globals_.of(context))
    logs.set_up(out.settings, tracebacks=False)
    crew = _crew(file, overlay)
    spec = _spec(crew, name)
    raise typer.Exit(asyncio.run(_call(crew, spec, arguments, agent, user, out)))


async def _call(crew: Crew, spec: ToolSpec, arguments: str, agent: str | None, user: str | None, out: Output) -> int:
    from crewline.cli import dry
    from crewline.cli import output as codes

    said = dry.CallSaid(spec.name, arguments)
    who = dry.agent_of(crew, spec.name, agent)
    decision = await dry.judge(crew, said, agent=who, user=user)
    why = "; ".join(f"{reason.code}: {reason.say}" for reason in decision.reasons) or decision.action
    if decision.action == "deny":
        out.say_error("denied", why, f"crewline tools show {spec.name}")
        return codes.DENIED
    if decision.action == "require_approval":
        out.say_error("held", f"{why}. Nothing has run", "ask an agent to call it: then a person can approve it")
        return codes.HELD
    return await _run(crew, spec, decision.arguments or arguments, who, user, out)


async def _run(crew: Crew, spec: ToolSpec, arguments: str, agent: str, user: str | None, out: Output) -> int:
    """Run the tool as its pool would, and print what it returns."""

    from crewline_tools.context import Cancelled, ToolContext, idempotency_key
    from crewline_tools.running import Runner

    from crewline.cli.output import FAILED, OK
    from crewline.client import new_id
    from crewline.expressions import Expression

    id = f"by-hand:{new_id()}"
    values = {"user": {"id": user}, "run": {"id": id}, "agent": agent}
    names = ("user", "run", "agent")
    injected = {name: Expression.compile(text, names=names).evaluate(values) for name, text in spec.inject.items()}
    cancelled = Cancelled()
    toolctx = ToolContext(
        call_id=id, idempotency_key=idempotency_key(crew.roster.topics.namespace, id, id), user=user, conversation=id,
        run=id, agent=agent, cancelled=cancelled,
    )
    runner = Runner("by-hand")
    try:
        ran = await runner.run(crew.tools[spec.name], arguments, injected or None, toolctx, cancelled)
    finally:
        runner.close()
    if out.settings.json:
        out.document({"tool": spec.name, "how": ran.how, "output": ran.output, "code": ran.code,
                      "duration_s": round(ran.duration_s, 6)})
    elif ran.how == "returned":
        out.answer(ran.output)
    if ran.how != "returned":
        if not out.settings.json:
            out.say_error(ran.code or ran.how, ran.output, f"crewline tools show {spec.name}")
        return FAILED
    return OK
