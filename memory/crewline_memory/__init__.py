"""The memory: what roles have folded so far, so that a restart need not read the whole log.

base.py    what every store promises (MemoryStore, Snapshot, Mark)
sqlite.py  the store of one host: one file beside the embedded log
"""

from crewline_memory.base import Mark as Mark
from crewline_memory.base import MemoryStore as MemoryStore
from crewline_memory.base import Snapshot as Snapshot
from crewline_memory.sqlite import SQLiteStore as SQLiteStore
from crewline_memory.sqlite import open_store as open_store
