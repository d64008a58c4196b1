"""The loop that every role runs: own partitions, fold, snapshot, run pending effects, keep timers.

    records ──fold──▶ state ──pending──▶ effects ──act──▶ messages ──append──▶ records

The engine alone appends what effects lead to, and an append changes nothing by itself: a record counts
when it is the next one to fold. Three rules carry the rest:

* Effects are derived after the whole batch at hand is folded, and only once the partition has been
  folded to the end it had when it was assigned. Until then a state may be one long gone.
* Folding never waits for an effect. A coroutine effect runs as a task of its own; a waiting one
  (a timer, a person) is no task at all.
* An effect is over when the fold no longer returns it. An owed one (a record for another topic) is
  over for this owner when the bus has acknowledged it; that is remembered with the snapshot.

base.py       what an engine is given (View, Role, Effect, EngineOptions), and who may watch it (Observer)
ownership.py  what it means to own partitions: take over, fold, write back
collector.py  the garbage collector, set for such a process
outbox.py     appending what effects led to, until it is acknowledged
loop.py       Engine: poll, derive effects, run them, keep timers
"""

from crewline.engine.base import Acted as Acted
from crewline.engine.base import Effect as Effect
from crewline.engine.base import EngineOptions as EngineOptions
from crewline.engine.base import Noted as Noted
from crewline.engine.base import Observer as Observer
from crewline.engine.base import Role as Role
from crewline.engine.base import View as View
from crewline.engine.loop import Engine as Engine
from crewline.engine.ownership import Part as Part
