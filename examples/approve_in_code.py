"""A crew asked from Python, and a held call decided by a program.

    crewline init my-crew && python examples/approve_in_code.py my-crew/crew.yaml

Runs offline. The crew's log is in the folder `.crewline` here, as with `crewline run`.
"""

import asyncio
import sys

from crewline import Crew
from crewline.events import CallJudged

QUESTION = "My lamp arrived broken, order A-1001. Can I have my money back?"


async def main(crew_file: str) -> None:
    async with Crew.load(crew_file, offline=True).up() as running:
        async for frame in running.stream(QUESTION, user="u-7"):
            print(f"{frame.type:20} {frame.agent}")
            if isinstance(frame.event, CallJudged) and frame.event.decision == "require_approval":
                call = await running.client.find_call(frame.event.call)
                print(f"  {call.agent} wants {call.call.name}({call.arguments}) for {call.user}")
                await running.approve(call.id, by="night-shift-bot", note="below the night limit")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
