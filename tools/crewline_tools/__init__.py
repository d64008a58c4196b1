"""Tools: what a function must say to become one, and the pools that run them.

base.py       ToolSpec: a tool as guardrail, worker and pool know it
functions.py  @tool: a specification from a function's signature and docstring
hints.py      Verbatim, Derived, Free, Sink: what an argument may hold, for the guardrail
context.py    ToolContext: what a running tool is told, and can say
reconcile.py  UncertainCall: how a tool settles a call that may or may not have run
errors.py     ToolError: what a tool tells the model
results.py    return values as text for the model
registry.py   the tools of a crew: by reference, by entry point, by hand
builtin.py    delegate and handoff, run by the worker itself

pool_view.py  a pool's view of its topic: executions, claims, outcomes; what is due
verify.py     what an executor checks before anything else
running.py    one run of one function, in a thread or in the loop
threads.py    threads that may be given up
reading.py    read tools run for the guardrail's facts
slots.py      how many tools run at once
pool.py       the role that claims, runs and reports
"""
