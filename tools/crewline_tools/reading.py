"""Read tools run in-process, without a log: what the guardrail's facts are looked up with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from crewline.errors import CrewlineError, NotFound

from crewline_tools.context import Cancelled, ToolContext
from crewline_tools.running import Runner, Tool


class ReadTools:
    """The read tools of a crew, for whoever must look something up himself.

    A tool that is not `effect: read` is refused: it runs at its pool alone, with a verdict.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self._runner = Runner("crewline-facts")

    async def run(self, name: str, args: dict[str, Any], injected: Mapping[str, Any] | None = None) -> Any:
        """Return what the tool returns, as a JSON value; `injected` are the arguments that the runtime sets.

        Raises: NotFound if there is no read tool of that name; CrewlineError if it fails.
        """
        tool = self._tools.get(name)
        if tool is None or tool.spec.effect != "read":
            raise NotFound(f"there is no read tool {name!r}")
        cancelled = Cancelled()
        context = ToolContext(call_id=f"fact:{name}", cancelled=cancelled)
        ran = await self._runner.run(tool, msgspec.json.encode(args).decode(), injected, context, cancelled)
        if ran.how != "returned":
            raise CrewlineError(f"{name}: {ran.output}")
        try:
            return msgspec.json.decode(ran.output)
        except msgspec.DecodeError:
            return ran.output

    def close(self) -> None:
        """End its idle threads."""
        self._runner.close()
