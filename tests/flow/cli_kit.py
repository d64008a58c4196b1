"""A crew for the tests of the command line, and `crewline` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CREW = """\
schema: crew/v1
name: till
version: 1.0.0
models:
  default: {provider: scripted, script: script.yaml}
agents:
  clerk:
    role: Clerk
    goal: Pay what is due
    tools: [look, pay, linger]
    capabilities:
      till.pay: {description: Pays}
tools:
  look: {python: "till_tools:look", effect: read}
  linger: {python: "till_tools:linger", effect: read, timeout: 60s}
  pay: {python: "till_tools:pay", effect: destructive, idempotent: true}
guardrails:
  policies:
    small: {tools: [pay], when: args.amount <= 10.0, action: allow, reason: Small change}
    middle: {tools: [pay], when: args.amount > 10.0, action: require_approval, reason: Over 10 needs a person}
    large: {tools: [pay], when: args.amount > 100.0, action: deny, reason: Over 100 is never paid}
  approvals: {approvers: [leads], timeout: 1h}
"""
SCRIPT = """\
clerk:
  turns:
    - when: pay
      steps: [{call: pay, args: {to: alice, amount: 40}}, {say: "Paid {result.pay}."}]
    - when: fail
      steps: [{fail: {retryable: false, say: the model is out of order}}]
    - when: linger
      steps: [{call: linger, args: {}}, {say: rested}]
    - [{call: look, args: {what: till}}, {say: "The till holds {result.look}."}]
"""
TOOLS = '''\
import asyncio
from crewline import tool

@tool(effect="read")
def look(what: str) -> str:
    """Look.

    Args:
        what: at what.
    """
    return "12 coins"

@tool(effect="read", timeout="60s")
async def linger() -> str:
    """Wait until it is stopped."""
    await asyncio.Event().wait()
    return "rested"

@tool(effect="destructive", idempotent=True)
def pay(to: str, amount: float) -> str:
    """Pay.

    Args:
        to: whom.
        amount: how much.
    """
    return f"{amount:g} to {to}"
'''
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("CREWLINE_")},
    "PYTHONIOENCODING": "utf-8",
}
for _name in ("NO_COLOR", "FORCE_COLOR", "CI"):
    ENVIRONMENT.pop(_name, None)


def write_crew(folder: Path) -> Path:
    """Write the crew into `folder`; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.yaml").write_text(SCRIPT)
    (folder / "till_tools.py").write_text(TOOLS)
    file = folder / "crew.yaml"
    file.write_text(CREW)
    return file


def start(folder: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start `crewline ARGS` in `folder`."""
    command = [sys.executable, "-m", "crewline.cli", *args]
    environment = {**ENVIRONMENT, **options.pop("environment", {})}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, encoding="utf-8",
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def crewline(folder: Path, *args: str, input: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `crewline ARGS` in `folder` to its end."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    process = start(folder, *args, **options)
    out, err = process.communicate(input, timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def lines_of(text: str) -> list[dict[str, Any]]:
    """Return the documents of a stream of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
