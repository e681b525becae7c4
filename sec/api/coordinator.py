"""The Coordinator service: every SEC node answers every call. Reads come from the store; commands are written to it.

Calls about sagas stand here; those about the cluster in `sec.api.cluster`.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from sec_model.codec import payload_to_proto
from sec_model.commands_codec import command_to_proto
from sec_protos.v1 import coordinator_pb2 as pb

from sec.api import requests
from sec.api.answering import Context, answered, give_up_before, reading, reading_stream, starting, subject, writing
from sec.api.cluster import ClusterCalls
from sec.api.errors import invalid
from sec.api.log_watch import LogWatch
from sec.api.submits import Submits
from sec.api.views import corrupt_view, node_errors, saga_view, sequenced, stored_summary
from sec.api.waiting import RECHECK_S, SettledWatch
from sec.codec import entries_from_bytes
from sec.core.errors import CorruptLog
from sec.core.records import LogEntry, SagaId
from sec.core.refusals import refusal
from sec.core.state import SagaState, fold
from sec.core.transitions import Course
from sec.node.door import Bound
from sec.node.node import SecNode
from sec.store.errors import SagaNotFound, WrongState
from sec.store.keys import last_segment
from sec.store.kv import Compacted, EventKind, Watch
from sec.store.listing import ListFilter
from sec.store.sagas import StoredSaga
from sec.summaries import STATE_OF_COURSE

DEFAULT_WAIT_S = 20.0
MAX_WAIT_S = 60.0
MAX_LOG_PAGE = 1_000
MAX_WAITING_COMMANDS = 1_000
"""Of one saga, until its owner has taken them up: each is a key, which every SEC node holds in memory."""


class Coordinator(ClusterCalls):
    """Answers for one SEC node."""

    def __init__(self, node: SecNode) -> None:
        super().__init__(node)
        self._settled = SettledWatch(node.live, node.keys)
        self._log_watch = LogWatch(node.kv, node.keys)
        self._submits = Submits(node)

    def stop_waiting(self) -> None:
        """Answers all who wait for a saga with what is known now: the node is about to stop."""
        self._settled.wake_all()

    @starting
    async def SubmitSaga(self, request: pb.SubmitSagaRequest, context: Context) -> pb.SubmitSagaResponse:  # noqa: N802 # the contract's name
        return await self._submits.one(request, give_up_before(context), requests.traceparent(context))

    @answered  # each of its sagas comes in by the door
    async def SubmitSagas(self, request: pb.SubmitSagasRequest, context: Context) -> pb.SubmitSagasResponse:  # noqa: N802
        return await self._submits.many(request, give_up_before(context), requests.traceparent(context))

    @starting
    async def StartSaga(self, request: pb.StartSagaRequest, context: Context) -> pb.StartSagaResponse:  # noqa: N802
        await self._node.owner.start(requests.saga_id(request.saga_id), give_up_before(context))
        return pb.StartSagaResponse()

    @writing
    async def CommandSaga(self, request: pb.CommandSagaRequest, context: Context) -> pb.CommandSagaResponse:  # noqa: N802
        saga_id = requests.saga_id(request.saga_id)
        command = requests.command(request, self._node.clock_us())
        _, state = await self._load(saga_id)
        if request.command_id in state.commands:
            return pb.CommandSagaResponse()
        because = refusal(state, command)
        if because:
            raise WrongState(because)
        waiting = await self._node.sagas.waiting_commands(saga_id)
        if waiting >= MAX_WAITING_COMMANDS:
            because = f'has {waiting} commands for saga "{saga_id}" that its owner has not taken up'
            raise self.door.refuse(Bound.COMMANDS, subject("command", request), because)
        request.command.CopyFrom(command_to_proto(command))
        if not await self._node.sagas.command(saga_id, request.command_id, request.SerializeToString(), give_up_before(context)):
            raise WrongState(f'Saga "{saga_id}" has just ended and takes no commands any more.')
        return pb.CommandSagaResponse()

    @writing
    async def DeleteSaga(self, request: pb.DeleteSagaRequest, context: Context) -> pb.DeleteSagaResponse:  # noqa: N802
        await self._node.sagas.delete(requests.saga_id(request.saga_id), give_up_before(context))
        return pb.DeleteSagaResponse()

    @reading
    async def GetSaga(self, request: pb.GetSagaRequest, context: Context) -> pb.GetSagaResponse:  # noqa: N802
        stored = await self._node.sagas.load(requests.saga_id(request.saga_id))
        view = await self._view(stored, request)
        if request.with_definition:
            with contextlib.suppress(CorruptLog):  # which the view says already
                view.definition.CopyFrom(await self._node.definitions.message(stored.head.definition_hash))
        return pb.GetSagaResponse(saga=view)

    async def _view(self, stored: StoredSaga, request: pb.GetSagaRequest) -> pb.Saga:
        try:
            if stored.problem:
                raise CorruptLog(stored.problem)
            graph = await self._node.definitions.graph(stored.head.definition_hash)
            state = fold(stored.head.saga_id, graph, stored.entries)
        except CorruptLog as error:
            return corrupt_view(stored, str(error))
        reports = self._node.owner.reports.of(stored.head.uid)
        return saga_view(stored, state, self._node.directory.offered, reports, omit_outputs=request.omit_outputs)

    @reading
    async def ListSagas(self, request: pb.ListSagasRequest, context: Context) -> pb.ListSagasResponse:  # noqa: N802
        wanted = ListFilter(frozenset(request.states), request.name, dict(request.labels), request.owner)
        sagas, token = await self._node.listing.page(wanted, requests.page_size(request.page_size), request.page_token)
        return pb.ListSagasResponse(sagas=sagas, next_page_token=token)

    @reading
    async def WaitSaga(self, request: pb.WaitSagaRequest, context: Context) -> pb.WaitSagaResponse:  # noqa: N802
        saga_id = requests.saga_id(request.saga_id)
        if not math.isfinite(request.timeout_s) or not 0 <= request.timeout_s <= MAX_WAIT_S:
            raise invalid(f"A wait lasts between 0 and {MAX_WAIT_S:g} seconds, not {request.timeout_s}.", saga_id=saga_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (request.timeout_s or DEFAULT_WAIT_S)
        event = self._settled.subscribe(saga_id)
        at_work = self._settled.at_work(saga_id)
        try:
            while True:
                event.clear()
                if not at_work:
                    response = _wait_response(*await self._load(saga_id))
                    if response.settled or loop.time() >= deadline or self._node.stopping:
                        return response
                at_work = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(deadline - loop.time(), RECHECK_S)):
                        await event.wait()
        finally:
            self._settled.unsubscribe(saga_id, event)

    @reading
    async def GetSagaLog(self, request: pb.GetSagaLogRequest, context: Context) -> pb.GetSagaLogResponse:  # noqa: N802
        stored = await self._node.sagas.load(requests.saga_id(request.saga_id))
        wanted = [e for e in stored.entries if e.sequence >= request.from_sequence]
        limit = min(request.limit or MAX_LOG_PAGE, MAX_LOG_PAGE)
        following = wanted[limit].sequence if len(wanted) > limit else 0
        problem = "" if following else stored.problem
        return pb.GetSagaLogResponse(records=[sequenced(e) for e in wanted[:limit]], next_sequence=following, problem=problem)

    @reading_stream
    async def WatchSaga(self, request: pb.WatchSagaRequest, context: Context) -> AsyncIterator[pb.WatchSagaResponse]:  # noqa: N802
        saga_id = requests.saga_id(request.saga_id)
        state: SagaState | None = None
        while True:
            async with self._log_watch.follow(saga_id) as changes:
                stored, folded = await self._load(saga_id)
                if state is None:
                    state = SagaState(saga_id, folded.graph)
                try:
                    async with aclosing(_entries(saga_id, stored, changes)) as entries:
                        async for entry in entries:
                            if entry.sequence < state.next_sequence:
                                continue  # read again after the watch fell behind
                            state.apply_entry(entry)
                            if entry.sequence >= request.from_sequence:
                                yield pb.WatchSagaResponse(record=sequenced(entry), state=STATE_OF_COURSE[state.course])
                            if state.course.ended:
                                return
                except Compacted:
                    continue

    async def _load(self, saga_id: SagaId) -> tuple[StoredSaga, SagaState]:
        """Raises `CorruptLog` for a saga that cannot be read."""
        stored = await self._node.sagas.load(saga_id)
        if stored.problem:
            raise CorruptLog(stored.problem)
        graph = await self._node.definitions.graph(stored.head.definition_hash)
        return stored, fold(saga_id, graph, stored.entries)


async def _entries(saga_id: SagaId, stored: StoredSaga, changes: Watch) -> AsyncGenerator[LogEntry, None]:
    """What the log has, and then what comes. Raises `Compacted` when that cannot be followed: read the saga again; and `SagaNotFound`."""
    for entry in stored.entries:
        yield entry
    async for batch in changes:
        if batch.revision <= stored.revision:
            continue
        for event in batch.events:
            if event.kind is EventKind.DELETE:
                raise SagaNotFound(f'Saga "{saga_id}" was deleted.')
            first = int(last_segment(event.item.key), 16)
            for entry in entries_from_bytes(event.item.value, first, event.item.create_revision):
                yield entry


def _wait_response(stored: StoredSaga, state: SagaState) -> pb.WaitSagaResponse:
    settled = state.course.ended or state.course is Course.STUCK
    response = pb.WaitSagaResponse(summary=stored_summary(stored, state), settled=settled, errors=node_errors(stored, state))
    if state.course is Course.DONE:
        response.output.CopyFrom(payload_to_proto(state.output_of(state.graph.final)))
    return response
