"""The tools of the maintenance crew."""

from typing import Annotated, Any

from crewline import ToolContext, ToolError, Verbatim, tool
from pydantic import Field

from plant import office

MachineId = Annotated[str, Verbatim(), Field(pattern=r"^pump-\d+$")]


def _machine(machine_id: str) -> tuple[str, str]:
    if machine_id not in office.MACHINES:
        raise ToolError(f"there is no machine {machine_id}", retryable=False)
    return office.MACHINES[machine_id]


@tool(effect="read", timeout="5s", retries=2)
def machine_record(machine_id: MachineId) -> dict[str, Any]:
    """Look a machine up.

    Args:
        machine_id: the machine, such as pump-4.
    """
    what, bearing = _machine(machine_id)
    return {"machine_id": machine_id, "what": what, "bearing": bearing, "orders": office.noted("orders")}


@tool(effect="read", timeout="15s", retries=1)
def spectrum(machine_id: MachineId) -> dict[str, Any]:
    """Measure the vibration spectrum of a machine.

    Args:
        machine_id: the machine, such as pump-4.
    """
    _machine(machine_id)
    return {"peaks_hz": [25.0, 107.0], "outer_race_hz": 107.2}


@tool(effect="read", timeout="5s", retries=2)
def crew_calendar(days: Annotated[int, Field(ge=1, le=30)]) -> list[str]:
    """Look up when the maintenance crew is free.

    Args:
        days: how far ahead.
    """
    return ["Thursday 06:00", "Saturday 06:00"][: max(1, days // 3)]


@tool(effect="read", timeout="5s")
def part_price(part_no: str) -> dict[str, Any]:
    """Look up what a part costs.

    Args:
        part_no: the part's number.
    """
    if part_no not in office.PRICES_EUR:
        raise ToolError(f"there is no part {part_no}", retryable=False)
    return {"part_no": part_no, "price_eur": office.PRICES_EUR[part_no]}


@tool(effect="write", idempotent=True, retries=3)
def create_work_order(machine_id: MachineId, work: str, ctx: ToolContext) -> str:
    """Book maintenance work.

    Args:
        machine_id: the machine, such as pump-4.
        work: what is to be done.
    """
    _machine(machine_id)
    return f"work order {office.note('orders', ctx.idempotency_key, machine_id, work)}"


@tool(effect="destructive", timeout="20s")
def order_part(part_no: str, machine_id: MachineId, ctx: ToolContext) -> str:
    """Order a part; the supplier takes nothing back.

    Args:
        part_no: the part's number.
        machine_id: the machine it is for.
    """
    _machine(machine_id)
    return f"order {office.note('parts', ctx.call_id, machine_id, part_no)}"


@tool(effect="destructive", timeout="10s")
def stop_machine(machine_id: MachineId, ctx: ToolContext) -> str:
    """Stop a production machine.

    Args:
        machine_id: the machine, such as pump-4.
    """
    _machine(machine_id)
    office.note("stops", ctx.call_id, machine_id, "stopped")
    return f"{machine_id} stands"
