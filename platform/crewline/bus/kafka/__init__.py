"""The log on Apache Kafka: what `Bus` promises, over aiokafka.

opening.py   open_bus: the address, the options, the probe, then the bus
options.py   KafkaOptions: every setting, once, with its reason
security.py  TLS from files, tokens, and no secret in a log
probe.py     is there a broker, may we in, can we reach what it advertises: an answer within 3 s
refusals.py  why there was no way in, or what may not be done: a line, and what to do
listeners.py what kind of listener an address is
connections.py  aiokafka's client: connections, and what is known of brokers and topics
wire.py      single requests and their errors in our words: metadata, offsets, a fetch without waiting
admin.py     topics with the right settings, or each difference; the lag of every group
bus.py       KafkaBus, put together from these and from
producer.py  appending: the calls, their deadlines
lanes.py     what is to be appended to each partition, in order
sending.py   one request at a time to a broker, and what becomes of a batch that fails
fetching.py  one fetch request and its answer, in a session with the broker
feed.py      what is new in the log, fetched once for all readers of a bus
reader.py    positions, and equal parts of every poll: tails
consumer.py  members of groups: callbacks from within `poll`
membership.py   a member's joins, heartbeats and leave, by aiokafka's consumer
sharing.py   who gets which partition: sticky, and given only after its owner has let go
loop.py      the event loop for a process whose bus is Kafka
logs.py      aiokafka's log, each line at most once in a while
"""

from crewline.bus.kafka.loop import run as run
from crewline.bus.kafka.opening import open_bus as open_bus
from crewline.bus.kafka.options import KafkaOptions as KafkaOptions
