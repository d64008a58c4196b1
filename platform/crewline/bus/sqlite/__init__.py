"""The embedded log: one file, no server, any number of processes of one host.

bus.py       SQLiteBus: what `Bus` promises, put together from
file.py      the file's layout, pragmas and errors
catalog.py   what this process knows of it: topics, ends, the newest records
writer.py    the one thread that writes: group commit
reader.py    reading what is not in memory
consumer.py  tails and members of groups
groups.py    who owns what, who is dead
sweep.py     retention and compaction
"""

from crewline.bus.sqlite.bus import SQLiteBus as SQLiteBus
from crewline.bus.sqlite.bus import open_bus as open_bus
