"""Submits: one path for a saga that comes by itself and for many that come with one call, of which each is stored or refused by itself."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from sec_model import DefinitionError
from sec_model.versions import not_offered
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import definition_pb2

from sec.api import requests
from sec.api.answering import subject
from sec.api.errors import ApiError, does_not_fit, invalid, refusal, to_api_error
from sec.api.fitting import FitChecks
from sec.core.records import SagaId
from sec.node.door import Overloaded
from sec.node.node import SecNode
from sec.node.owner import wall_clock_us
from sec.store.errors import SagaNotFound, WrongState
from sec.store.sagas import GiveUp, SagaHead

MAX_SAGAS = 1_000
MAX_DEFINITIONS = 100
"""Of one call. Its bytes are bounded by those of a message."""
AT_ONCE = 120
"""Sagas of one call that are begun in one turn of the event loop: about as many as share a transaction."""

_Submission = pb.SubmitSagaRequest | pb.SagaSubmission
_Terms = pb.SubmitSagaRequest | pb.SubmitSagasRequest


@dataclass(slots=True)
class _Common:
    """What sagas that are made from one definition have in common. It is found out once for all of them."""

    checked: requests.CheckedDefinition
    missing: Sequence[str]
    """Actions that nobody offers now."""
    storing: "asyncio.Task[str] | None" = None


class Submits:
    """Takes sagas in, for one SEC node."""

    def __init__(self, node: SecNode) -> None:
        self._node = node
        self._fit = FitChecks(node.directory)
        self._definitions = requests.Definitions(node.settings.limits)

    async def one(self, request: pb.SubmitSagaRequest, give_up: GiveUp, traceparent: str) -> pb.SubmitSagaResponse:
        """Submits a saga that has come in by the door. `traceparent` is the trace context of the call; empty: it has none."""
        common = self._common(request.definition, request.saga_id or request.definition.name)
        return await self._submit(request, common, request, give_up, traceparent)

    async def many(self, request: pb.SubmitSagasRequest, give_up: GiveUp, traceparent: str) -> pb.SubmitSagasResponse:
        """Submits each of these sagas, for which there is room. Raises `Overloaded` when there was none for any of them."""
        for count, most, what in (
            (len(request.sagas), MAX_SAGAS, "sagas"),
            (len(request.definitions), MAX_DEFINITIONS, "definitions"),
        ):
            if count > most:
                raise invalid(f"One call submits at most {most} {what}, not {count}.", hint="Send several calls.")
        commons: dict[int, _Common | Exception] = {}
        no_room: list[Overloaded] = []

        async def submit(saga: pb.SagaSubmission) -> pb.SubmissionResult:
            try:
                with self._node.door.write(subject("submit", saga), starts=not request.start_later):
                    common = self._common_of(saga, request, commons)
                    result = pb.SubmissionResult()
                    result.submitted.CopyFrom(await self._submit(saga, common, request, give_up, traceparent))
                    return result
            except Exception as error:
                if isinstance(error, Overloaded):
                    no_room.append(error)
                told = to_api_error(error, saga.saga_id)
                return pb.SubmissionResult(refused=refusal(told, self._node.settings.name, saga.saga_id))

        tasks = []
        async with asyncio.TaskGroup() as group:
            for number, saga in enumerate(request.sagas, 1):
                tasks.append(group.create_task(submit(saga)))
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
        if no_room and len(no_room) == len(tasks):
            raise no_room[0]
        return pb.SubmitSagasResponse(results=[task.result() for task in tasks])

    def _common_of(
        self, saga: pb.SagaSubmission, request: pb.SubmitSagasRequest, known: dict[int, "_Common | Exception"]
    ) -> _Common:
        """A definition that is not valid is refused for each of its sagas, and checked once."""
        index = saga.definition
        if index >= len(request.definitions):
            count = len(request.definitions)
            raise invalid(
                f'Saga "{saga.saga_id[:200]}" is to be made from definition {index}, but the call has {count}, from 0 on.'
            )
        if index not in known:
            definition = request.definitions[index]
            try:
                known[index] = self._common(definition, definition.name)
            except (ApiError, DefinitionError) as error:
                known[index] = error
        found = known[index]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found

    def _common(self, definition: definition_pb2.SagaDefinition, called: str) -> _Common:
        """`called` is what messages about the definition call the saga. Raises `ApiError` and `DefinitionError`."""
        checked = self._definitions.check(definition, called[:200])
        return _Common(checked, not_offered(checked.graph.action_names(), self._node.directory.offered))

    async def _submit(
        self, saga: _Submission, common: _Common, terms: _Terms, give_up: GiveUp, traceparent: str
    ) -> pb.SubmitSagaResponse:
        limits, checked, start = self._node.settings.limits, common.checked, not terms.start_later
        saga_id = requests.saga_id(saga.saga_id) if saga.saga_id else _draw_saga_id()
        params = requests.params(saga.params, saga_id, limits)
        labels = requests.labels(saga.labels, saga_id, limits)
        deadline = requests.deadline(saga, saga_id)
        problems = self._fit.problems(checked.digest, checked.graph, params)
        refused = does_not_fit(saga_id, problems) if problems else None
        if terms.require_actions and common.missing:
            refused = _not_offered(saga_id, common.missing)
        # A saga that is there already is answered as it is, whatever has become of its actions.
        if refused is not None and not (saga.saga_id and await self._exists(saga_id)):
            raise refused
        uid, now_us = secrets.token_hex(8), self._node.clock_us()
        head = SagaHead(saga_id, uid, checked.name, checked.digest, params, labels, now_us, deadline, traceparent)
        await self._store(common)
        try:
            submitted = await self._node.owner.submit(head, checked.graph, start=start, give_up=give_up)
        except WrongState:
            # No saga used the definition any more since we cached it, and so it was removed: it has to be stored again.
            self._node.definitions.forget(checked.digest)
            await self._store(common)
            submitted = await self._node.owner.submit(head, checked.graph, start=start, give_up=give_up)
        warned = common.missing if submitted.created or not start else ()
        response = pb.SubmitSagaResponse()
        response.saga_id, response.created = saga_id, submitted.created
        response.warnings.extend(_warning(name) for name in warned)
        return response

    async def _store(self, common: _Common) -> None:
        """Has the definition stored, once for all who come at the same time."""
        if common.checked.digest in self._node.definitions:
            return
        if common.storing is None or common.storing.done():
            put = self._node.definitions.put(common.checked.data, common.checked.graph)
            common.storing = asyncio.get_running_loop().create_task(put)
        await common.storing

    async def _exists(self, saga_id: SagaId) -> bool:
        try:
            await self._node.sagas.load(saga_id)
        except SagaNotFound:
            return False
        return True


def _warning(action: str) -> str:
    return f'No action server that can be reached offers the action "{action}" now; its nodes will wait.'


def _not_offered(saga_id: SagaId, missing: Sequence[str]) -> ApiError:
    names = ", ".join(f'"{name}"' for name in missing)
    return ApiError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "action_not_offered",
        f'Saga "{saga_id}" was not stored: no action server that can be reached offers {names}.',
        saga_id=saga_id,
        hint='Start the action servers ("secctl action list" shows what is offered), or submit without require_actions.',
        retryable=True,
    )


def _draw_saga_id() -> SagaId:
    """Ordered by time, to the microsecond, and unique by 40 random bits."""
    return SagaId(f"{wall_clock_us():014x}-{secrets.token_hex(5)}")
