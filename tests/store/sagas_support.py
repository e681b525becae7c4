"""What the tests of sagas in the store share: a store for one SEC node, and small sagas to put there."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from sec_model import Deadline, Definition, Payload, Saga, action, compile_graph
from sec_model.codec import definition_bytes
from sec_protos.v1 import coordinator_pb2
from store_support import append

from sec.core.records import Created, Record, SagaId, SecNodeName, Started, StartRequested
from sec.store.commit import GroupCommit
from sec.store.definitions import DefinitionStore
from sec.store.keys import Keys
from sec.store.kv import NO_LEASE, Kv, LeaseId
from sec.store.listing import SagaListing
from sec.store.sagas import Ownership, SagaHead, SagaStore, Submitted

NEVER = lambda: False  # noqa: E731  # never give up
AT_ONCE = lambda: True  # noqa: E731  # give up after the first try

_uids = itertools.count(1)


def chain(name: str = "chain") -> Definition:
    return Saga(name).append(action("a", "do_a")).append(action("b", "do_b")).build()


@dataclass
class Desk:
    """One SEC node's view of the store."""

    kv: Kv
    prefix: bytes
    name: str = "n1"
    lease: LeaseId = NO_LEASE
    keys: Keys = field(init=False)
    commits: GroupCommit = field(init=False)
    sagas: SagaStore = field(init=False)
    definitions: DefinitionStore = field(init=False)
    listing: SagaListing = field(init=False)

    def __post_init__(self) -> None:
        ticks = itertools.count(1_000_000)
        self.keys = Keys(self.prefix.decode().rstrip("/"))
        self.commits = GroupCommit(self.kv, timeout_s=2.0)
        self.sagas = SagaStore(self.kv, self.keys, self.commits, SecNodeName(self.name), lambda: next(ticks))
        self.definitions = DefinitionStore(self.kv, self.keys)
        self.listing = SagaListing(self.kv, self.keys)

    async def append(self, *args: Any, **kwargs: Any) -> None:
        await append(self.sagas, *args, **kwargs)

    async def join(self) -> "Desk":
        self.lease = await self.kv.lease_grant(60)
        return self

    @property
    def ownership(self) -> Ownership:
        return Ownership(SecNodeName(self.name), self.lease)

    async def head(
        self,
        saga_id: str,
        *,
        labels: dict[str, str] | None = None,
        params: object = None,
        name: str = "chain",
        deadline: Deadline | None = None,
    ) -> SagaHead:
        definition = chain(name)
        digest = await self.definitions.put(definition_bytes(definition), compile_graph(definition))
        payload = Payload() if params is None else Payload.json(params)
        return SagaHead(SagaId(saga_id), f"uid{next(_uids)}", name, digest, payload, labels or {}, 5, deadline)

    async def submit(self, head: SagaHead, *, owned: bool = True, started: bool = True) -> Submitted:
        records: tuple[Record, ...] = (Created(head.uid, head.definition_hash),)
        if started:
            records += (StartRequested(),)
        if started and owned:
            records += (Started("a"),)  # type: ignore[arg-type]
        state = coordinator_pb2.SAGA_STATE_RUNNING if started else coordinator_pb2.SAGA_STATE_CREATED
        owner = self.ownership if owned and started else None
        return await self.sagas.submit(head, records, summary(head, state), owner, started=started, give_up=NEVER)


def summary(head: SagaHead, state: coordinator_pb2.SagaState) -> coordinator_pb2.SagaSummary:
    return coordinator_pb2.SagaSummary(saga_id=head.saga_id, name=head.name, labels=head.labels, state=state)
