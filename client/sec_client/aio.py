"""The asyncio client of a cluster.

    async with Client("10.0.0.1:7450,10.0.0.2:7450") as client:
        result = await client.run(trip, params={"guest": "Ada"})

Every method may be called from any number of coroutines of one event loop. Cancelling a call leaves it unknown whether it took effect.
All raise `SagaError` (`sec_client.errors`), `ClusterUnavailable` among them when no SEC node could do the call within `timeout_s`, and `Overloaded`
when none had room for it all that time.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc.aio
from sec_model import Deadline, Definition, Saga
from sec_model.builder import Seconds
from sec_model.commands import Command, NodePath, Signal
from sec_model.commands_codec import command_to_proto
from sec_protos.v1 import coordinator_pb2 as pb

from sec_client import decode
from sec_client.errors import SagaError, SagaNotFound, WaitTimeout, WrongState, damaged_log, from_rpc_error
from sec_client.ids import new_saga_id
from sec_client.payloads import encode
from sec_client.submissions import KnownDefinitions, Submission, submit_many
from sec_client.together import Submits
from sec_client.transport import DEFAULT_TIMEOUT_S, Cluster, Metadata, Pause, Tls, worth_repeating
from sec_client.views import (
    LogRecord,
    NodeList,
    OfferedAction,
    SagaPage,
    SagaResult,
    SagaState,
    SagaSummary,
    SagaView,
    SubmitResult,
)

_WAIT_ROUND_S = 10.0
"""A wait is asked for in rounds, so that a node that hangs is noticed after one."""
_ROUND_GRACE_S = 5.0
_WATCH_IDLE_S = 20.0
"""A watch that brought nothing for this long is opened again, elsewhere: its node may hang."""


class Client:
    """A client of the cluster at these SEC addresses: a list, or a text with commas between them.

    `metadata` goes with every call. `timeout_s` bounds a call with all of its repetitions. Raises `ValueError` for a bad address.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        tls: Tls | None = None,
        metadata: Mapping[str, str] | Metadata = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._talk_to(Cluster(addresses, tls=tls, metadata=metadata, timeout_s=timeout_s))

    def _talk_to(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._definitions = KnownDefinitions()
        self._submits = Submits(cluster, self._definitions)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections. Calls under way end in an error. May be repeated."""
        await self._cluster.close()

    async def submit(
        self,
        definition: Definition | Saga,
        *,
        params: Any = None,
        saga_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        require_actions: bool = False,
        deadline: Seconds | Deadline | None = None,
    ) -> SubmitResult:
        """Stores a saga and, unless `start` is false, starts it. Returns when that is durable.

        Without a `saga_id` one is drawn here, so that the call can be repeated without making a second saga. The same id with the same
        content answers the existing saga. `params` is a JSON value, bytes or a `Payload`. With `require_actions` an action that no
        action server offers now is an error and not a warning. A saga that has not ended when its `deadline` (seconds or a time from its start)
        has passed unwinds, or, if the `Deadline` says so, is paused. Submits that are made in one turn of the event loop share a call. Where OpenTelemetry is installed, the saga belongs to the trace of the caller. Raises `InvalidDefinition`, `SagaExists`, `ActionNotOffered`, `TooLarge`, `InvalidArgument`.
        """
        submission = Submission(definition, params, saga_id, labels, deadline)
        return await self._submits.submit(submission, start=start, require_actions=require_actions)

    async def submit_many(
        self, submissions: Iterable[Submission], *, start: bool = True, require_actions: bool = False
    ) -> Sequence[SubmitResult | SagaError]:
        """Submits many sagas, hundreds with one call: `submit_many([Submission(trip, params={"guest": guest}) for guest in guests])`.

        Answers what became of each, in their order: what `submit` would have returned or raised. One that is refused does not fail the others. A
        definition is sent once, however many sagas are made from it. Calls that have no answer, and sagas for which there was no room, are
        sent again, to other SEC nodes first, for the client's `timeout_s` with each call; when no SEC node can be had all that time, what has
        not been sent is not tried any more and gets that error too. Raises only `TypeError` and `ValueError`, for params that JSON cannot say, before anything is sent.
        """
        return await submit_many(self._cluster, self._definitions, submissions, start=start, require_actions=require_actions)

    async def start(self, saga_id: str) -> None:
        """Starts a saga that was submitted with `start=False`. Raises `WrongState` when it has been started or has ended."""
        try:
            await self._cluster.call(lambda stub: stub.StartSaga, pb.StartSagaRequest(saga_id=saga_id), saga_id=saga_id)
        except WrongState as e:
            if not e.repeated:  # otherwise it was an earlier try of this call that started it
                raise

    async def delete(self, saga_id: str) -> None:
        """Removes a saga that has ended or was never started, for good: nothing of it is left, and its id is free again.

        Raises `WrongState` when it is active, and `SagaNotFound`.
        """
        try:
            await self._cluster.call(lambda stub: stub.DeleteSaga, pb.DeleteSagaRequest(saga_id=saga_id), saga_id=saga_id)
        except SagaNotFound as e:
            if not e.repeated:  # otherwise it was an earlier try of this call that removed it
                raise

    async def command(self, saga_id: str, command: Command, *, by: str = "", command_id: str | None = None) -> str:
        """Gives a saga a command: `command("s1", Pause("maintenance"))`. Returns its id when it is durable; the saga's owner takes it up.

        The record "commanded" with this id in the saga's log says that it was taken up, or, should the saga have gone on meanwhile, why it
        was `refused`. Without a `command_id` one is drawn here, so that the call can be repeated. `by` is kept in the log.
        Raises `WrongState` when it makes no sense as the saga stands.
        """
        command_id = command_id or new_saga_id()
        message = pb.CommandSagaRequest(saga_id=saga_id, command_id=command_id, by=by, command=command_to_proto(command))
        await self._cluster.call(lambda stub: stub.CommandSaga, message, saga_id=saga_id)
        return command_id

    async def signal(self, saga_id: str, node: str, value: Any = None, *, by: str = "", command_id: str | None = None) -> str:
        """Sends the event that a signal node, named by its full path, waits for: a JSON value, bytes or a `Payload`, which becomes its output.

        A command, as of `command`. A node takes one signal, be it reached or not: `WrongState` is raised for a second one.
        """
        return await self.command(saga_id, Signal(NodePath(node), encode(value)), by=by, command_id=command_id)

    async def taken_up(self, saga_id: str, command_id: str, *, timeout_s: float = 10.0) -> LogRecord:
        """Waits until the owner of a saga has taken up a command, and answers the record that says so.

        Raises `WrongState` when the owner refused it, and `WaitTimeout` when it was not taken up in time: it will be, unless the saga ends
        first. A saga that was not started takes up its commands when it is.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with aclosing(self.watch(saga_id)) as records:
                    async for record in records:
                        if record.kind == "commanded" and record.fields.get("command_id") == command_id:
                            if refused := record.fields.get("refused"):
                                raise WrongState(refused, code="wrong_state", saga_id=saga_id)
                            return record
        except TimeoutError as error:
            message = f'The command "{command_id}" was not taken up by the owner of saga "{saga_id}" within {timeout_s:g} s.'
            raise WaitTimeout(message, saga_id=saga_id) from error
        raise WrongState(
            f'Saga "{saga_id}" ended before the command "{command_id}" was taken up.', code="wrong_state", saga_id=saga_id
        )

    async def get(self, saga_id: str, *, outputs: bool = True) -> SagaView:
        """The saga and all of its nodes, as of now. Without `outputs` the outputs of the nodes are left out."""
        message = pb.GetSagaRequest(saga_id=saga_id, omit_outputs=not outputs)
        answer = await self._cluster.call(lambda stub: stub.GetSaga, message, saga_id=saga_id)
        return decode.saga(answer.saga)

    async def list_page(
        self,
        *,
        states: Collection[SagaState | str] = (),
        name: str = "",
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> SagaPage:
        """One page of sagas, those that need attention first. Filters: any of `states`, all of `labels`, `name` of the definition, `owner`.

        Raises `PageExpired` when the token is too old, `ValueError` for a state that does not exist.
        """
        message = pb.ListSagasRequest(
            page_size=page_size,
            page_token=page_token,
            states=[decode.SAGA_STATE_NUMBERS[SagaState(s)] for s in states],
            name=name,
            labels=dict(labels or {}),
            owner=owner,
        )
        answer = await self._cluster.call(lambda stub: stub.ListSagas, message)
        return SagaPage(tuple(decode.summary(s) for s in answer.sagas), answer.next_page_token)

    async def list(
        self,
        *,
        states: Collection[SagaState | str] = (),
        name: str = "",
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[SagaSummary]:
        """All sagas that the filters let through, page by page; all pages show the cluster at the instant of the first."""
        token = ""
        while True:
            page = await self.list_page(states=states, name=name, labels=labels, owner=owner, page_size=page_size, page_token=token)
            for summary in page.sagas:
                yield summary
            token = page.next_page_token
            if not token:
                return

    async def watch(self, saga_id: str, from_sequence: int = 1) -> AsyncGenerator[LogRecord, None]:
        """The records of a saga from `from_sequence` on, then each new one as it becomes durable; ends when the saga has ended.

        A node that dies or hangs meanwhile is left for another: nothing is missed and nothing comes twice. Close the iterator
        (`contextlib.aclosing`) when it is left early.
        """
        sequence, ended = max(1, from_sequence), False
        pause, failing_since, asked_for_s = Pause(), None, 0.0
        while not ended:
            endpoint = self._cluster.current()
            stream = endpoint.stub.WatchSaga(
                pb.WatchSagaRequest(saga_id=saga_id, from_sequence=sequence), metadata=self._cluster.metadata
            )
            try:
                while True:
                    async with asyncio.timeout(_WATCH_IDLE_S):
                        answer = await stream.read()
                    if answer is grpc.aio.EOF:
                        break
                    assert isinstance(answer, pb.WatchSagaResponse)
                    failing_since = None
                    pause.reset()
                    ended = decode.saga_state(answer.state).ended
                    if answer.record.sequence >= sequence:
                        sequence = answer.record.sequence + 1
                        yield decode.record(answer.record, decode.saga_state(answer.state))
                ended = ended or (await self.get(saga_id, outputs=False)).state.ended
            except TimeoutError:
                self._cluster.leave(endpoint)
                continue
            except grpc.aio.AioRpcError as e:
                error = from_rpc_error(e, address=endpoint.address, saga_id=saga_id)
                asked_for_s = error.retry_after_s
                now = time.monotonic()
                failing_since = failing_since or now
                if not worth_repeating(e) or now - failing_since > self._cluster.timeout_s:
                    raise error from None
                self._cluster.leave(endpoint)
            finally:
                stream.cancel()
            if not ended:
                await asyncio.sleep(pause.next_s(asked_for_s))
                asked_for_s = 0.0

    async def wait(self, saga_id: str, *, timeout_s: float | None = None) -> SagaResult:
        """Waits until the saga has ended or is stuck, over the death of any SEC node.

        Raises `WaitTimeout` after `timeout_s` (None: never), `ClusterUnavailable` when no SEC node could be asked for the client's own
        `timeout_s`, `SagaNotFound`, `SagaCorrupt`.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = _WAIT_ROUND_S if end is None else end - time.monotonic()
            round_s = max(0.01, min(left_s, _WAIT_ROUND_S))
            answer = await self._cluster.call(
                lambda stub: stub.WaitSaga,
                pb.WaitSagaRequest(saga_id=saga_id, timeout_s=round_s),
                saga_id=saga_id,
                budget_s=round_s + self._cluster.timeout_s,
                attempt_s=round_s + _ROUND_GRACE_S,
            )
            if answer.settled:
                return decode.result(answer)
            if end is not None and time.monotonic() >= end:
                state = decode.saga_state(answer.summary.state)
                raise WaitTimeout(
                    f'Saga "{saga_id}" has not settled within {timeout_s:g} seconds: it is {state}. It goes on.',
                    saga_id=saga_id,
                    hint="Wait again, or look at it with get.",
                    retryable=True,
                )

    async def run(
        self,
        definition: Definition | Saga,
        *,
        params: Any = None,
        saga_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        require_actions: bool = False,
        deadline: Seconds | Deadline | None = None,
        timeout_s: float | None = None,
    ) -> SagaResult:
        """Submits a saga and waits for it. `.result()` of what it returns is the output, or raises. Raises as `submit` and `wait` do."""
        submitted = await self.submit(
            definition, params=params, saga_id=saga_id, labels=labels, require_actions=require_actions, deadline=deadline
        )
        return await self.wait(submitted.saga_id, timeout_s=timeout_s)

    async def log(self, saga_id: str, from_sequence: int = 1) -> AsyncIterator[LogRecord]:
        """The records of the saga log as it stands, from `from_sequence` on.

        Raises `SagaCorrupt` behind the last record that can be read, when the log is damaged there.
        """
        sequence = max(1, from_sequence)
        while sequence:
            message = pb.GetSagaLogRequest(saga_id=saga_id, from_sequence=sequence)
            answer = await self._cluster.call(lambda stub: stub.GetSagaLog, message, saga_id=saga_id)
            for record in answer.records:
                yield decode.record(record)
            sequence = answer.next_sequence
            if answer.problem:
                raise damaged_log(saga_id, answer.problem)

    async def nodes(self) -> NodeList:
        """The SEC nodes that hold a session now, and which of them answered."""
        return decode.nodes(await self._cluster.call(lambda stub: stub.ListNodes, pb.ListNodesRequest()))

    async def drain(self, name: str, *, undo: bool = False) -> None:
        """Lets an SEC node hand over its sagas and take no new ones; `undo` takes that back. Raises `NodeNotFound`."""
        await self._cluster.call(lambda stub: stub.DrainNode, pb.DrainNodeRequest(name=name, undrain=undo))

    async def actions(self) -> Sequence[OfferedAction]:
        """The actions that are offered now, and by which action servers."""
        answer = await self._cluster.call(lambda stub: stub.ListActions, pb.ListActionsRequest())
        return tuple(decode.action(a) for a in answer.actions)
