"""What a process tells about itself: metrics for Prometheus, traces for OpenTelemetry, logs for machines.

Off until asked for, and then fed by one observer an engine. What is told comes from records that stand, with
the log's times, so it does not matter which process tells it.

spells.py       what took how long in a conversation, read off its records
instruments.py  every metric by name
counting.py     spells and troubles, counted
page.py         gauges, and the page at --metrics
watching.py     the observer of one role's engine
"""

from crewline.telemetry.watching import Watch as Watch
from crewline.telemetry.watching import watch as watch
