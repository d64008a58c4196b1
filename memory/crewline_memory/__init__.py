"""The memory: what roles have folded so far, so that a restart need not read the whole log.

base.py    what every store promises (MemoryStore, Snapshot, Mark)
sqlite.py  the store of one host: one file beside the embedded log
redis.py   the store that several hosts share, imported by whoever opens it
  redis_link.py     the way to one Redis: checks, time-outs, away and back
  redis_scripts.py  what Redis runs, and what it keeps
"""

from crewline_memory.base import Mark as Mark
from crewline_memory.base import MemoryStore as MemoryStore
from crewline_memory.base import Snapshot as Snapshot
from crewline_memory.sqlite import SQLiteStore as SQLiteStore
from crewline_memory.sqlite import open_store as open_store
