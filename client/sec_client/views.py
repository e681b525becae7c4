"""What the client answers: frozen values, with states as words, times as `datetime` in UTC, and payloads as `Payload`.

How they are read from the messages of the contract stands in `sec_client.decode`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sec_model import Payload
from sec_model.definition import NO_PAYLOAD
from sec_model.schemas import ActionSchemas

from sec_client.errors import SagaCorrupt, SagaError, SagaFailed, SagaStuck


class SagaState(StrEnum):
    """Where a saga is. `UNKNOWN` stands for a state that this version of the client does not know."""

    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    UNWINDING = "unwinding"
    STUCK = "stuck"
    DONE = "done"
    UNDONE = "undone"
    CORRUPT = "corrupt"

    @property
    def ended(self) -> bool:
        """Nothing will ever happen to it again."""
        return self in (SagaState.DONE, SagaState.UNDONE)

    @property
    def settled(self) -> bool:
        """It has ended, or goes on only when an operator decides."""
        return self.ended or self in (SagaState.STUCK, SagaState.CORRUPT)


class NodeState(StrEnum):
    """Where a node of a saga is. The words are those of the status text."""

    UNKNOWN = "unknown"
    BLOCKED = "blocked"
    QUEUED = "queued"
    WORKING = "working"
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"
    OUTCOME_UNKNOWN = "outcome-unknown"
    UNDO_QUEUED = "undo-queued"
    UNDOING = "undoing"
    ABANDONED = "abandoned"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"
    UNDO_SKIPPED = "undo-skipped"
    WAITING = "waiting"


class Phase(StrEnum):
    """Which half of a node is meant."""

    UNKNOWN = "unknown"
    DO = "do"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class NodeError:
    """Why a node failed, its outcome is unknown, or its undo failed. `node` is a full path; empty: the saga as a whole."""

    node: str
    phase: Phase
    message: str
    code: str = ""
    data: Payload | None = None
    time: datetime | None = None

    def __str__(self) -> str:
        where = f'node "{self.node}"' if self.node else "the saga"
        return f"{'undo of ' if self.phase is Phase.UNDO else ''}{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class SagaSummary:
    """What a list shows of a saga. `owner` is empty when no SEC node owns it."""

    saga_id: str
    name: str
    state: SagaState
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    created: datetime | None = None
    ended: datetime | None = None
    error: NodeError | None = None
    paused: bool = False
    """An operator or a breakpoint holds it; `pause_reason` says why."""
    pause_reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the call of an action is, as its action server reports it: from 0 to 1 (None: it does not say), and a line for people."""

    fraction: float | None
    message: str
    time: datetime | None
    """When the report came."""

    def __str__(self) -> str:
        done = "" if self.fraction is None else f"{self.fraction:.0%}"
        return ": ".join(filter(None, (done, self.message))) or "at work"


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node of a saga. `node` and `depends_on` are full paths. Nodes of one rank in one (sub)saga stand beside each other."""

    node: str
    label: str
    state: NodeState
    depends_on: tuple[str, ...] = ()
    action: str = ""
    attempts: int = 0
    detail: str = ""
    error: NodeError | None = None
    output: Payload | None = None
    subsaga: bool = False
    rank: int = 0
    due: datetime | None = None
    """When its deadline is, or, of a timer, the instant that it waits for."""
    progress: "Progress | None" = None
    """What the call under way has last reported, if it has."""

    @property
    def parent(self) -> str:
        """Full path of the subsaga around it; empty at the top."""
        return self.node.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class SagaView:
    """A saga with all of its nodes, in order of insertion, each subsaga followed by its own nodes."""

    summary: SagaSummary
    uid: str = ""
    definition_hash: str = ""
    params: Payload = NO_PAYLOAD
    nodes: tuple[NodeView, ...] = ()
    output_payload: Payload | None = None
    errors: tuple[NodeError, ...] = ()
    next_sequence: int = 1
    epoch: int = 0
    due: datetime | None = None
    """When its deadline is."""

    @property
    def saga_id(self) -> str:
        return self.summary.saga_id

    @property
    def state(self) -> SagaState:
        return self.summary.state

    @property
    def output(self) -> Any:
        """The decoded output of the final node; None while there is none. Raises `ValueError` when it is no JSON, but says so."""
        return None if self.output_payload is None else self.output_payload.value()

    def __getitem__(self, path: str) -> NodeView:
        """The node with this full path. Raises `KeyError`."""
        for node in self.nodes:
            if node.node == path:
                return node
        raise KeyError(path)


@dataclass(frozen=True, slots=True)
class SagaPage:
    """One page of a listing. `next_page_token` is empty on the last."""

    sagas: tuple[SagaSummary, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """`created` is false when the very same saga had been submitted before. `warnings` are sentences."""

    saga_id: str
    created: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SagaResult:
    """How a saga settled. `errors` has every failure, unknown outcome and failed undo, the first by time first."""

    saga_id: str
    state: SagaState
    output_payload: Payload | None = None
    errors: tuple[NodeError, ...] = ()
    summary: SagaSummary | None = None

    @property
    def output(self) -> Any:
        """The decoded output of the final node; None when the saga is not done. Raises `ValueError` when it is no JSON, but says so."""
        return None if self.output_payload is None else self.output_payload.value()

    def raise_for_state(self) -> None:
        """Raises `SagaFailed` (undone), `SagaStuck` or `SagaCorrupt` unless the saga is done."""
        reasons = "; ".join(str(e) for e in self.errors) or "no reason is recorded"
        match self.state:
            case SagaState.DONE:
                return
            case SagaState.UNDONE:
                raise SagaFailed(f'Saga "{self.saga_id}" failed and all of its effects were undone: {reasons}', self)
            case SagaState.STUCK:
                raise SagaStuck(
                    f'Saga "{self.saga_id}" is stuck, with effects left in the world: {reasons}',
                    self,
                    hint=f"Look at it with `secctl saga get {self.saga_id}`, and repair what its undo action could not.",
                )
            case SagaState.CORRUPT:
                raise SagaCorrupt(f'The log of saga "{self.saga_id}" cannot be read: {reasons}', saga_id=self.saga_id)
            case _:
                raise SagaError(
                    f'Saga "{self.saga_id}" has not settled: it is {self.state}.', saga_id=self.saga_id, code="wrong_state"
                )

    def result(self) -> Any:
        """The decoded output. Raises as `raise_for_state` does."""
        self.raise_for_state()
        return self.output


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of a saga's log.

    `kind` is the name of the record in the contract ("started", "undo_failed"); `node` is a full path, or empty for a record of the saga.
    `fields` has what else the record says, by the contract's names (`reason`, `attempt`, `sec_node`, …): payloads as `Payload`, messages as
    mappings (`command` has one key, the kind of the command), instants as `datetime`, without the unit in their names (`due`).
    `saga_state` is the saga's state after this record; None where a plain log was read.
    """

    sequence: int
    epoch: int
    writer: str
    time: datetime | None
    kind: str
    node: str = ""
    error: NodeError | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    saga_state: SagaState | None = None


class NodeCondition(StrEnum):
    """How an SEC node is. It serves when it is well, overloaded (it refuses what is new), or its store is slow."""

    UNKNOWN = "unknown"
    WELL = "well"
    OVERLOADED = "overloaded"
    STORE_SLOW = "store slow"
    STALLED = "stalled"
    """What it has accepted does not come forward."""
    WITHOUT_SESSION = "without session"
    STORE_FULL = "store full"
    STORE_WITHOUT_QUORUM = "store without quorum"
    STORE_UNREACHABLE = "store unreachable"
    DRAINED = "drained"
    STOPPING = "stopping"

    @property
    def serving(self) -> bool:
        return self in (NodeCondition.WELL, NodeCondition.OVERLOADED, NodeCondition.STORE_SLOW)


@dataclass(frozen=True, slots=True)
class SecNode:
    """An SEC node that holds a session now."""

    name: str
    address: str
    version: str = ""
    leader: bool = False
    draining: bool = False
    owned_sagas: int = 0
    started: datetime | None = None
    trouble: str = ""
    """Why it does not serve, or is not well, as sentences. Known of the node that answered only, as is `condition`."""
    condition: NodeCondition = NodeCondition.UNKNOWN


@dataclass(frozen=True, slots=True)
class NodeList:
    """The SEC nodes, and the one that answered."""

    nodes: tuple[SecNode, ...]
    answered_by: str = ""


@dataclass(frozen=True, slots=True)
class ActionServerView:
    """An action server as the SEC node that answered sees it. `configured`: it is listed there and did not register itself."""

    instance_id: str
    server_name: str
    address: str
    reachable: bool = False
    configured: bool = False


@dataclass(frozen=True, slots=True)
class OfferedAction:
    """An action that is offered now, by whom, and every way in which these servers describe what it takes and answers."""

    name: str
    summary: str = ""
    servers: tuple[ActionServerView, ...] = ()
    schemas: tuple[ActionSchemas, ...] = ()
