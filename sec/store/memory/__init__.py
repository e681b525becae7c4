"""A faithful etcd in memory: `MemoryEtcd` is the store, `MemoryKv` a client of it. For tests and the simulator.

Everything that our code can see of an etcd is as it is there: revisions, reads and watches in the past, compaction, leases, the
order of compares and writes in nested transactions, and what is refused. There is no randomness, and time is the event loop's, so
that under a loop with virtual time the same calls give the same history. What is not here: several members, authentication,
durability.

rules      what is refused, ranges, relations
etcd       `MemoryEtcd`: keys, transactions, leases, watches
client     `MemoryKv`: the port over it, with latency and faults to order
"""

from sec.store.memory.client import MemoryKv
from sec.store.memory.etcd import MemoryEtcd

__all__ = ["MemoryEtcd", "MemoryKv"]
