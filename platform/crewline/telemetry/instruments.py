"""Every metric there is, by name. Pages and dashboards name these; nothing else is exported."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

# From an append to a person who comes back after lunch.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0)


class Instruments:
    """The metrics of one process, in a registry of their own. Every one has the label `crew`, its namespace."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(name, help, ("crew", *labels), registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(name, help, ("crew", *labels), registry=registry)

        def seconds(name: str, help: str, *labels: str) -> Histogram:
            return Histogram(name, help, ("crew", *labels), registry=registry, buckets=SECONDS)

        # Counted by the worker that owns the conversation, from records that stand.
        self.turns = counter("crewline_turns", "Turns that ended: done, failed, cancelled.", "agent", "outcome")
        self.turn_seconds = seconds("crewline_turn_seconds", "From turn.started to turn.finished.", "outcome")
        self.steps = counter("crewline_steps", "Attempts of steps: replied, retried, failed.", "agent", "outcome")
        self.calls = counter(
            "crewline_calls", "Calls that ended: ok, error, refused, revoked, unknown (given up).", "tool", "outcome"
        )
        self.unknown = counter("crewline_calls_unknown", "Executions of which nobody could say whether they ran.", "tool")
        self.verdicts = counter("crewline_verdicts", "Verdicts: allow, amend, require_approval, deny.", "decision")
        self.decisions = counter(
            "crewline_decisions",
            "What people decided: approve, edit, deny, expired; on unknown calls ran, not_run, give_up.", "decision",
        )
        self.effect_seconds = seconds(
            "crewline_effect_seconds",
            "What conversations waited for: queue, model, judgement, person, call, delegation.", "effect",
        )
        self.tokens = counter("crewline_tokens", "Tokens as endpoints report them.", "agent", "direction")
        self.cost = counter("crewline_cost_usd", "What model calls cost, by the prices in the crew file.", "agent")
        self.rejected = counter("crewline_records_rejected", "Records that could not be taken as events.", "role", "code")
        self.parked = counter("crewline_conversations_parked", "Conversations that ended because they cannot be folded.")

        # Counted by the engine of each role.
        self.appends_retried = counter("crewline_appends_retried", "Appends that failed and were made again.", "role")
        self.store_errors = counter("crewline_store_errors", "Reads and writes of the store that failed.", "role")
        self.store_rebuilds = counter(
            "crewline_store_rebuilds", "Partitions of the store that were rebuilt from the log.", "role"
        )
        self.batches_resent = counter("crewline_batches_resent", "Batches sent to Kafka again, since no answer came.")

        # Read when the page is asked for.
        self.open_turns = gauge("crewline_turns_open", "Turns under way, by status.", "status")
        self.held = gauge("crewline_calls_held", "Calls that wait for a person's approval, as the guardrail knows them.")
        self.queued = gauge("crewline_intents_queued", "Intents that wait for their turn.")
        self.parked_now = gauge("crewline_conversations_parked_now", "Parked conversations in memory.")
        self.running = gauge("crewline_effects_running", "Effects that run now.", "role")
        self.lag_records = gauge(
            "crewline_lag_records", "Records not yet folded by the owner.", "group", "topic", "partition"
        )
        self.lag_seconds = gauge("crewline_lag_seconds", "Age of the oldest of them.", "group", "topic", "partition")
        self.bus_up = gauge("crewline_bus_up", "1 if the log answered when this page was made.")

    def names(self) -> set[str]:
        """Return the name of every series, as a query writes it."""
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
        return {
            metric.name + suffix
            for metric in self.registry.collect()
            for suffix in suffixes.get(metric.type, ("",))
        }
