"""The log: topics, partitions, offsets, groups.

base.py     what every bus promises (Bus, Record, Position…)
opening.py  a bus by its address, and the keys that go with it
sqlite/     the embedded log: one file, no server
kafka/      the log on Apache Kafka
bell.py     waking other processes of this host
repeated.py a line of the log that repeats itself is counted instead
"""

from crewline.bus.base import RECORD_BYTES_MAX as RECORD_BYTES_MAX
from crewline.bus.base import Batch as Batch
from crewline.bus.base import Bus as Bus
from crewline.bus.base import Consumer as Consumer
from crewline.bus.base import GroupLag as GroupLag
from crewline.bus.base import Message as Message
from crewline.bus.base import Position as Position
from crewline.bus.base import Record as Record
from crewline.bus.base import Tail as Tail
from crewline.bus.base import TopicInfo as TopicInfo
