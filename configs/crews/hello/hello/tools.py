"""One tool, without a network: the weather as it always is."""

from crewline import tool


@tool(effect="read", timeout="5s")
def weather(city: str = "Lisbon") -> str:
    """Look up the weather.

    Args:
        city: where.
    """
    return f"21 degrees and sunny in {city}"
