"""Calls of one action server by its stream of batches (`Batch` of the contract): while one message is being sent the next one fills.

Each call is what it would be by itself: it has its own time limit and its own answer or status. What has no answer when the stream ends has an
unknown outcome, but for a server that takes no batches at all.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

import grpc
import grpc.aio
from msgspec import Struct
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc

from sec.core.records import Fault, Phase
from sec.dispatch.calls import (
    Answer,
    Call,
    Heard,
    NotOffered,
    Pending,
    Report,
    Tell,
    Unanswered,
    do_answer,
    fill_request,
    status_answer,
    undo_answer,
)
from sec.dispatch.time_limits import TimeLimits

MAX_CALLS = 1_000
"""Of one message, by the contract."""
MAX_REPORT_CHARACTERS = 200
"""Of a report's message, by the contract."""
MAX_BYTES = 1024 * 1024
"""Of the payloads of one message. A call that is larger is better made by itself: the others would wait for it."""

_Stream = grpc.aio.StreamStreamCall[action_server_pb2.BatchRequest, action_server_pb2.BatchResponse]
_DO = Phase.DO
_STATUSES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class _Waiting(Struct):
    """A call without an answer."""

    number: int
    call: Call
    tell: Tell
    stream: "CallStream"
    alone: Pending | None = None
    """The call, made by itself."""
    silence: asyncio.TimerHandle | None = None
    """Bounds the time to the next report, where one is expected."""

    def cancel(self) -> None:
        if self.alone is None:
            self.stream.forget(self.number)
        else:
            self.alone.cancel()


def payload_bytes(call: Call) -> int:
    """How large a call is, but for its names."""
    size = len(call.params.data)
    if call.inputs:
        size += sum(len(value.data) for value in call.inputs.values())
    return size if call.output is None else size + len(call.output.data)


class CallStream:
    """One stream, from its first call to its end. `ended` says that it takes no more; `fit` that the server can be expected to take another."""

    def __init__(
        self,
        stub: "action_server_pb2_grpc.ActionServerAsyncStub",
        server: str,
        max_output_bytes: int,
        call_alone: Callable[[Call, Tell], Pending],
        not_offered: Callable[[str], None],
        heard: Heard,
    ) -> None:
        """`call_alone` makes a call by itself; `not_offered` is told of an action that the server turned down; `heard` of what calls report."""
        self.ended = False
        self.fit = True
        self._stub = stub
        self._server = server
        self._max_output_bytes = max_output_bytes
        self._call_alone = call_alone
        self._not_offered = not_offered
        self._heard = heard
        self._ids = itertools.count(1)
        self._outbox: deque[int] = deque()
        self._waiting: dict[int, _Waiting] = {}
        self._limits = TimeLimits(self._waiting, self._too_late)
        self._unwanted: set[str] = set()
        self._wake = asyncio.Event()
        self._idle: asyncio.Event | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"batches for {server}")

    def __len__(self) -> int:
        """How many calls have no answer."""
        return len(self._waiting)

    def call(self, call: Call, tell: Tell) -> Pending:
        """Makes one call, by itself when the server turns out to take no batches."""
        number = next(self._ids)
        waiting = self._waiting[number] = _Waiting(number, call, tell, self)
        self._limits.add(number, call.timeout_s)
        if call.heartbeat_timeout_s:
            self._expect_report(waiting)
        self._outbox.append(number)
        self._wake.set()
        return waiting

    def forget(self, number: int) -> None:
        """The call is not waited for any longer. If it was not sent yet, it is not made."""
        self._take_out(number)

    async def idle(self) -> None:
        """Waits until all calls have their answers."""
        self._idle = asyncio.Event()
        while self._waiting:
            self._idle.clear()
            await self._idle.wait()

    def _take_out(self, number: int) -> _Waiting | None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and waiting.silence is not None:
            waiting.silence.cancel()
        if self._idle is not None:
            self._idle.set()
        return waiting

    def cancel(self, idempotency_key: str) -> None:
        """Tells the server, by the next message, that nobody wants the effect of a do under way any more. Its answer is waited for as before."""
        self._unwanted.add(idempotency_key)
        self._wake.set()

    async def close(self) -> None:
        """Ends the stream. Calls under way have an unknown outcome."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def _too_late(self, number: int) -> None:
        waiting = self._take_out(number)
        if waiting is not None:
            status = grpc.StatusCode.DEADLINE_EXCEEDED
            waiting.tell(status_answer(status, "no answer came in time.", self._server, waiting.call))

    def _expect_report(self, waiting: _Waiting) -> None:
        if waiting.silence is not None:
            waiting.silence.cancel()
        loop = asyncio.get_running_loop()
        waiting.silence = loop.call_later(waiting.call.heartbeat_timeout_s, self._too_silent, waiting.number)

    def _too_silent(self, number: int) -> None:
        waiting = self._take_out(number)
        if waiting is not None:
            call = waiting.call
            half = "action" if call.phase is Phase.DO else "undo action"
            text = f'The {half} of "{call.action}" at {self._server} has neither answered nor reported for {call.heartbeat_timeout_s:g} s.'
            waiting.tell(Unanswered(Fault(text, "no_heartbeat")))

    def _hear(self, progress: action_server_pb2.BatchedProgress) -> None:
        waiting = self._waiting.get(progress.id)
        if waiting is None:
            return
        if waiting.silence is not None:
            self._expect_report(waiting)
        fraction = progress.fraction if progress.HasField("fraction") and 0 <= progress.fraction <= 1 else None
        self._heard(waiting.call, Report(fraction, progress.message[:MAX_REPORT_CHARACTERS]))

    async def _run(self) -> None:
        stream = self._stub.Batch()
        writing = asyncio.get_running_loop().create_task(self._write(stream))
        code, why = grpc.StatusCode.CANCELLED, "the connection was closed"
        try:
            async for response in stream:
                for progress in response.progress:
                    self._hear(progress)
                for answer in response.answers:
                    self._take(answer)
            code, why = await stream.code(), "the server ended the stream of calls"
        except grpc.aio.AioRpcError as error:
            code, why = error.code(), error.details() or "the stream of calls broke"
        finally:
            stream.cancel()
            writing.cancel()
            await asyncio.wait([writing])
            self._end(code, why)

    async def _write(self, stream: _Stream) -> None:
        """Sends what there is. When the stream is broken its reader says so."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox or self._unwanted:
                message = self._message()
                self._add_unwanted(message)
                if not message.calls and not message.cancelled:
                    continue
                try:
                    await stream.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return

    def _message(self) -> action_server_pb2.BatchRequest:
        """As many of the calls that wait as fit into a message. A call that is not waited for any longer is not made."""
        message = action_server_pb2.BatchRequest()
        size = 0
        while self._outbox and len(message.calls) < MAX_CALLS:
            waiting = self._waiting.get(self._outbox[0])
            if waiting is not None:
                call = waiting.call
                size += payload_bytes(call)
                if message.calls and size > MAX_BYTES:
                    break
                batched = message.calls.add()
                batched.id, batched.timeout_s = waiting.number, call.timeout_s
                if call.traceparent:
                    batched.traceparent = call.traceparent
                fill_request(batched.do_request if call.phase is _DO else batched.undo_request, call)
            self._outbox.popleft()
        return message

    def _add_unwanted(self, message: action_server_pb2.BatchRequest) -> None:
        """Those of dos that have been sent, or are in the message. One look at what waits serves all that were cancelled meanwhile."""
        if not self._unwanted:
            return
        unwanted, self._unwanted = self._unwanted, set()
        for number, waiting in self._waiting.items():
            key = waiting.call.idempotency_key
            if waiting.call.phase is not Phase.DO or key not in unwanted:
                continue
            if self._outbox and number >= self._outbox[0]:
                self._unwanted.add(key)
            else:
                message.cancelled.append(number)

    def _end(self, code: grpc.StatusCode, why: str) -> None:
        self.ended = True
        self.fit = code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        self._limits.clear()
        for number in list(self._waiting):
            if (waiting := self._take_out(number)) is None:
                continue  # forgotten because of what came of another one
            if code is grpc.StatusCode.UNIMPLEMENTED:  # the server takes no batches, and has not begun with the call
                waiting.alone = self._call_alone(waiting.call, waiting.tell)
            else:
                text = f'A call of "{waiting.call.action}" at {self._server} has no answer: {why}.'
                waiting.tell(Unanswered(Fault(text, "unavailable")))

    def _take(self, answered: action_server_pb2.BatchedAnswer) -> None:
        waiting = self._take_out(answered.id)
        if waiting is None:
            return
        call = waiting.call
        answer: Answer
        kind = answered.WhichOneof("result")
        if kind == "do_response" and call.phase is _DO:
            answer = do_answer(answered.do_response, self._server, call, self._max_output_bytes)
        elif kind == "undo_response" and call.phase is Phase.UNDO:
            answer = undo_answer(answered.undo_response)
        elif kind == "status":
            status = _STATUSES.get(answered.status.code, grpc.StatusCode.UNKNOWN)
            answer = status_answer(status, answered.status.message, self._server, call)
            if isinstance(answer, NotOffered):
                self._not_offered(call.action)
        else:
            text = f'The action server at {self._server} answered a call of "{call.action}" by what is no answer to it.'
            answer = Unanswered(Fault(text, "empty_answer"))
        waiting.tell(answer)
