"""What a process tells about itself: metrics for Prometheus, traces for OpenTelemetry, logs for machines.

Off until asked for, and then fed by one observer an engine. What is told comes from records that stand, with
the log's times, so it does not matter which process tells it.

spells.py       what took how long in a conversation, read off its records
watching.py     the observer of one role's engine
counting.py     spells and troubles, counted
instruments.py  every metric by name
page.py         gauges, and the page at --metrics
traces.py       spells as spans
export.py       where spans go
fields.py       what a line of the log is about
process.py      all of it, for one process
"""

from crewline.telemetry.process import Telemetry as Telemetry
from crewline.telemetry.watching import Watch as Watch
