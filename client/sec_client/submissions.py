"""Submitting sagas: how many are sent together, and what becomes of each."""

import asyncio
import copy
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import grpc
from sec_model import Deadline, Definition, DefinitionError, Payload, Saga, compile_graph
from sec_model.builder import Seconds, deadline_of
from sec_model.codec import deadline_to_proto, definition_to_proto, payload_to_proto
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import definition_pb2

from sec_client.errors import ClusterUnavailable, InvalidDefinition, Overloaded, SagaError, from_detail
from sec_client.ids import new_saga_id
from sec_client.payloads import encode
from sec_client.tracing import current_metadata
from sec_client.transport import Cluster, Pause
from sec_client.views import SubmitResult

MAX_SAGAS = 500
"""Of one call: half of what the contract allows, and a quarter of the submits that an SEC node takes at once by default."""
MAX_DEFINITIONS = 100
MAX_BYTES = 4 * 1024 * 1024
"""Of one call, about: half of what an SEC node takes."""
MAX_KNOWN = 100
"""Definitions that a client keeps."""
ATTEMPT_S = 10.0
"""For one try, be there other SEC nodes or not: many sagas take longer than one."""
_SINGLY_AT_ONCE = 32
"""Submits at once to an SEC node that knows no others."""

_STATUSES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Submission:
    """A saga to be submitted with others; the fields are the parameters of `submit`. Without a `saga_id` one is drawn by `submit_many`."""

    definition: Definition | Saga
    params: Any = None
    saga_id: str | None = None
    labels: Mapping[str, str] | None = None
    deadline: Seconds | Deadline | None = None


@dataclass(slots=True)
class Sent:
    """One of them on its way. `saga.definition` is filled in for each call anew."""

    saga: pb.SagaSubmission
    definition: definition_pb2.SagaDefinition
    size: int
    result: SubmitResult | SagaError | None = None


def checked(definition: Definition | Saga) -> Definition:
    """A definition that keeps the rules. Raises `InvalidDefinition`."""
    try:
        if isinstance(definition, Saga):
            return definition.build()
        compile_graph(definition)
    except DefinitionError as e:
        raise InvalidDefinition(
            f"The definition of the saga is not valid: {e}",
            problems=e.problems,
            hint="Nothing was sent: repair the definition first.",
        ) from None
    return definition


def params_to_proto(params: Any) -> Any:
    """Raises `TypeError` or `ValueError` for what JSON cannot say."""
    return payload_to_proto(Payload() if params is None else encode(params))


async def submit_many(
    cluster: Cluster, known: "KnownDefinitions", submissions: Iterable[Submission], *, start: bool, require_actions: bool
) -> Sequence[SubmitResult | SagaError]:
    """See `sec_client.aio.Client.submit_many`."""
    definitions = Definitions(known)
    sent = [definitions.encode(each) for each in submissions]
    await send_many(cluster, sent, pb.SubmitSagasRequest(start_later=not start, require_actions=require_actions))
    results = []
    for each in sent:
        assert each.result is not None
        results.append(each.result)
    return results


async def send_many(cluster: Cluster, sent: Sequence[Sent], terms: pb.SubmitSagasRequest) -> None:
    """Gives each a result that has none."""
    lost: SagaError | None = None
    for part in _parts([each for each in sent if each.result is None]):
        if lost is None:
            lost = await _submit_part(cluster, part, terms)
        else:
            for each in part:
                each.result = _of(lost, each, sent=False)


async def send_one(cluster: Cluster, sent: Sent, terms: pb.SubmitSagasRequest) -> SubmitResult:
    """By a call of its own. Raises `SagaError`."""
    saga = sent.saga
    message = pb.SubmitSagaRequest(
        saga_id=saga.saga_id,
        definition=sent.definition,
        params=saga.params,
        labels=saga.labels,
        deadline=saga.deadline if saga.HasField("deadline") else None,
        start_later=terms.start_later,
        require_actions=terms.require_actions,
    )
    answer = await cluster.call(lambda stub: stub.SubmitSaga, message, saga_id=saga.saga_id, metadata=current_metadata())
    return _submitted(answer, sent)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A definition as it is sent, and its bytes, or the rule that it breaks."""

    message: definition_pb2.SagaDefinition | InvalidDefinition
    data: bytes = b""


class KnownDefinitions:
    """The definitions that a client has submitted last, checked and encoded once. By identity, since they never change; a `Saga` may, and is not kept."""

    def __init__(self) -> None:
        self._encoded: OrderedDict[int, tuple[Definition, _Encoded]] = OrderedDict()

    def encoded(self, given: Definition | Saga) -> _Encoded:
        if isinstance(given, Saga):
            return _encode(given)
        if id(given) not in self._encoded:
            self._encoded[id(given)] = given, _encode(given)  # with what it is of, so that no other has its id
            if len(self._encoded) > MAX_KNOWN:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(id(given))
        return self._encoded[id(given)][1]


class Definitions:
    """The definitions of sagas that are sent together. Each is sent once, however many sagas share it."""

    def __init__(self, known: KnownDefinitions) -> None:
        self._known = known
        self._given: dict[int, tuple[Definition | Saga, _Encoded]] = {}
        self._equal: dict[bytes, definition_pb2.SagaDefinition] = {}

    def encode(self, submission: Submission) -> Sent:
        """What is to be sent. It has a result already when its definition is not valid. Raises `TypeError` and `ValueError`."""
        given = submission.definition
        if id(given) not in self._given:
            self._given[id(given)] = given, self._known.encoded(given)
        encoded = self._given[id(given)][1]
        saga = pb.SagaSubmission(
            saga_id=submission.saga_id or new_saga_id(),
            params=params_to_proto(submission.params),
            labels=submission.labels or None,
            deadline=deadline_to_proto(deadline_of(submission.deadline)),
        )
        if isinstance(encoded.message, InvalidDefinition):
            refused = copy.copy(encoded.message)
            refused.saga_id = saga.saga_id
            return Sent(saga, definition_pb2.SagaDefinition(), 0, refused)
        return Sent(saga, self._equal.setdefault(encoded.data, encoded.message), saga.ByteSize())


def _encode(definition: Definition | Saga) -> _Encoded:
    try:
        message = definition_to_proto(checked(definition))
    except InvalidDefinition as error:
        return _Encoded(error.with_traceback(None))
    return _Encoded(message, message.SerializeToString(deterministic=True))


def _parts(sent: Sequence[Sent]) -> Iterator[list[Sent]]:
    """As many at a time as go into one call."""
    part: list[Sent] = []
    definitions: set[int] = set()
    size = 0
    for each in sent:
        is_new = id(each.definition) not in definitions
        added = each.size + (each.definition.ByteSize() if is_new else 0)
        if part and (len(part) == MAX_SAGAS or size + added > MAX_BYTES or (is_new and len(definitions) == MAX_DEFINITIONS)):
            yield part
            part, definitions, size = [], set(), 0
            added = each.size + each.definition.ByteSize()
        part.append(each)
        definitions.add(id(each.definition))
        size += added
    if part:
        yield part


async def _submit_part(cluster: Cluster, part: list[Sent], terms: pb.SubmitSagasRequest) -> SagaError | None:
    """Gives each a result. Answers the error for which it is no use to send more."""
    end = time.monotonic() + cluster.timeout_s
    pause, waiting = Pause(), part
    while True:
        try:
            answer = await cluster.call(
                lambda stub: stub.SubmitSagas,
                _message(waiting, terms),
                budget_s=max(0.001, end - time.monotonic()),
                attempt_s=ATTEMPT_S,
                metadata=current_metadata(),
            )
        except SagaError as error:
            if error.status == grpc.StatusCode.UNIMPLEMENTED.name:
                return await _submit_singly(cluster, waiting, terms)
            for each in waiting:
                each.result = _of(error, each)
            return error if isinstance(error, ClusterUnavailable | Overloaded) or not error.status else None
        asked_for_s = 0.0
        again = []
        nothing = repeat(pb.SubmissionResult(), len(waiting))  # of a node that answers less than it was asked
        for each, result in zip(waiting, chain(answer.results, nothing), strict=False):
            each.result = _result(each, result)
            if isinstance(each.result, SagaError) and each.result.retryable:
                again.append(each)
                asked_for_s = max(asked_for_s, each.result.retry_after_s)
        if not again:
            return None
        waiting = again
        cluster.leave(cluster.current())
        pause_s = pause.next_s(asked_for_s if len(cluster.addresses) == 1 else 0.0)
        if time.monotonic() + pause_s >= end:
            return None
        await asyncio.sleep(pause_s)


async def _submit_singly(cluster: Cluster, waiting: Iterable[Sent], terms: pb.SubmitSagasRequest) -> SagaError | None:
    """For an SEC node that does not know `SubmitSagas`."""
    left = iter(waiting)
    lost: SagaError | None = None

    async def some() -> None:
        nonlocal lost
        for each in left:
            if lost is not None:
                each.result = _of(lost, each, sent=False)
                continue
            try:
                each.result = await send_one(cluster, each, terms)
            except SagaError as error:
                each.result = error
                if isinstance(error, ClusterUnavailable | Overloaded):
                    lost = error

    await asyncio.gather(*(some() for _ in range(_SINGLY_AT_ONCE)))
    return lost


def _message(waiting: Iterable[Sent], terms: pb.SubmitSagasRequest) -> pb.SubmitSagasRequest:
    message = pb.SubmitSagasRequest()
    message.CopyFrom(terms)
    indexes: dict[int, int] = {}
    for each in waiting:
        if id(each.definition) not in indexes:
            indexes[id(each.definition)] = len(indexes)
            message.definitions.append(each.definition)
        each.saga.definition = indexes[id(each.definition)]
        message.sagas.append(each.saga)
    return message


def _result(each: Sent, result: pb.SubmissionResult) -> SubmitResult | SagaError:
    match result.WhichOneof("result"):
        case "submitted":
            return _submitted(result.submitted, each)
        case "refused":
            refused = result.refused
            return from_detail(_STATUSES.get(refused.status, "UNKNOWN"), refused.message, refused.detail, saga_id=each.saga.saga_id)
        case _:
            message = f'The SEC node did not say what became of saga "{each.saga.saga_id}".'
            return SagaError(message, code="no_answer", saga_id=each.saga.saga_id, retryable=True, definite=False)


def _submitted(answer: pb.SubmitSagaResponse, each: Sent) -> SubmitResult:
    return SubmitResult(answer.saga_id or each.saga.saga_id, answer.created, tuple(answer.warnings))


def _of(error: SagaError, each: Sent, *, sent: bool = True) -> SagaError:
    """The error of a whole call as that of one of its sagas."""
    ours = copy.copy(error)
    ours.saga_id = each.saga.saga_id
    ours.definite = ours.definite or not sent
    return ours
