"""What Redis runs for the store: each script is one atomic step over one part's three keys.

A part is one role and partition of one namespace. Its keys share a hash tag, so a cluster keeps them together:

    crewline:1:{NAMESPACE/ROLE/PARTITION}:mark       hash    next_offset, id_before, carry, snapshots, open, write
    crewline:1:{NAMESPACE/ROLE/PARTITION}:snapshots  hash    key -> snapshot (msgpack: state, pending, acked, frozen_at)
    crewline:1:{NAMESPACE/ROLE/PARTITION}:open       set     the keys that are pending or frozen

`snapshots` and `open` of the mark count what must be there, kept by addition and not by asking: a key that
Redis lost is then missed at every later look. `write` is the id of the write that made the mark.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Script:
    """Lua, and the digest Redis knows it by."""

    text: str
    digest: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def part_keys(namespace: str, role: str, partition: int) -> tuple[str, str, str]:
    """Return the names of a part's mark, snapshots and open keys."""
    part = f"crewline:{FORMAT}:{{{namespace}/{role}/{partition}}}"
    return f"{part}:mark", f"{part}:snapshots", f"{part}:open"


# ARGV: write id, next_offset, after, id_before, carry, then for each snapshot: key, value, 1 if it is open.
# Returns 1 if written (now, or by the same write before, whose answer was lost), else 0.
# Everything that can be refused (a wrong type, no memory) is refused by the first lines, before anything is written.
# Lua's stack holds some thousand values, so snapshots go 500 at a time.
WRITE = _script("""
local stored = redis.call('HMGET', KEYS[1], 'write', 'next_offset', 'snapshots', 'open')
redis.call('HLEN', KEYS[2])
redis.call('SCARD', KEYS[3])
if stored[1] == ARGV[1] then return 1 end
local at = tonumber(stored[2] or 0)
if stored[2] and at >= tonumber(ARGV[2]) or at < tonumber(ARGV[3]) then return 0 end
if not stored[2] then redis.call('UNLINK', KEYS[2], KEYS[3]) end
local snapshots, open = tonumber(stored[3] or 0), tonumber(stored[4] or 0)
for first = 6, #ARGV, 1500 do
  local put, opened, closed = {}, {}, {}
  for i = first, math.min(first + 1499, #ARGV), 3 do
    put[#put + 1] = ARGV[i]
    put[#put + 1] = ARGV[i + 1]
    if ARGV[i + 2] == '1' then opened[#opened + 1] = ARGV[i] else closed[#closed + 1] = ARGV[i] end
  end
  snapshots = snapshots + redis.call('HSET', KEYS[2], unpack(put))
  if #opened > 0 then open = open + redis.call('SADD', KEYS[3], unpack(opened)) end
  if #closed > 0 then open = open - redis.call('SREM', KEYS[3], unpack(closed)) end
end
redis.call('HSET', KEYS[1], 'write', ARGV[1], 'next_offset', ARGV[2], 'id_before', ARGV[4], 'carry', ARGV[5],
  'snapshots', snapshots, 'open', open)
return 1
""")

# Returns the mark and what is really there.
MARK = _script("""
local mark = redis.call('HMGET', KEYS[1], 'next_offset', 'id_before', 'carry', 'snapshots', 'open')
return {mark, redis.call('HLEN', KEYS[2]), redis.call('SCARD', KEYS[3])}
""")

# Returns the write that made the mark, and the open keys.
OPEN = _script("return {redis.call('HGET', KEYS[1], 'write'), redis.call('SMEMBERS', KEYS[3])}")

# ARGV: keys, some hundred at most. Returns the write that made the mark, and their snapshots.
PAGE = _script("return {redis.call('HGET', KEYS[1], 'write'), redis.call('HMGET', KEYS[2], unpack(ARGV))}")

DROP = _script("return redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])")
