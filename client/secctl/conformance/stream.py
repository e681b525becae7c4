"""Calls an action server by its stream of batches, as SEC nodes do. What the answers should be is not known here."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from sec_protos.v1 import action_server_pb2 as pb

from secctl.conformance.probe import (
    TRACEPARENT,
    Answer,
    Breach,
    Message,
    Neither,
    Server,
    Status,
    done_answer,
    pauses,
    undone_answer,
)

MAX_CALLS = 1_000
MAX_BYTES = 1024 * 1024
"""Of one message, unless a single call is larger."""
_STATUSES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
Pending = asyncio.Future[Answer]


@dataclass(frozen=True, slots=True)
class _Waiting:
    undo: bool
    answer: Pending


class Stream:
    """One stream of batches. What comes back that answers nothing is noted, and raised by `blamed`; late answers are no fault."""

    def __init__(self, server: Server, first_id: int = 1) -> None:
        self.server = server
        self.status: grpc.StatusCode | None = None
        """With what the stream has ended."""
        self._ids = itertools.count(first_id)
        self._made: set[int] = set()
        self._waiting: dict[int, _Waiting] = {}
        self._faults: list[str] = []
        self._one_at_a_time = asyncio.Lock()
        self._call = server.stub.Batch()
        self._reading = asyncio.create_task(self._read())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.break_off()

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Around a check: raises `Breach` for what was noted, rather than for what followed from it."""
        try:
            yield
        except Breach:
            self.raise_fault()
            raise
        self.raise_fault()

    def raise_fault(self) -> None:
        """Raises `Breach` for the first that was noted."""
        if self._faults:
            raise Breach(self._faults[0]) from None

    def _note(self, fault: str) -> None:
        """No call is waited for any longer: the answer of one may have gone to another."""
        self._faults.append(fault)
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_result(Neither())

    async def write(self, calls: Sequence[Message], timeouts_s: Sequence[float] = ()) -> list[Pending]:
        """Sends calls in one message, and returns when that is on its way. Each answer is a `Status` of UNAVAILABLE when the stream ends before it comes."""
        limits_s = timeouts_s or [self.server.patience_s] * len(calls)
        message, pending = pb.BatchRequest(), []
        for call, timeout_s in zip(calls, limits_s, strict=True):
            batched = message.calls.add(id=next(self._ids), timeout_s=timeout_s, traceparent=TRACEPARENT)
            answer: Pending = asyncio.get_running_loop().create_future()
            undo = isinstance(call, pb.UndoRequest)
            self._made.add(batched.id)
            if self.status is None:
                self._waiting[batched.id] = _Waiting(undo, answer)
            else:
                answer.set_result(_unanswered(self.status))
            pending.append(answer)
            if isinstance(call, pb.UndoRequest):
                batched.undo_request.CopyFrom(call)
            else:
                batched.do_request.CopyFrom(call)
        async with self._one_at_a_time:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # its end is what the reader sees
                await self._call.write(message)
        return pending

    async def answers(self, pending: Sequence[Pending]) -> list[Answer]:
        """What calls were answered. Raises `Breach` for those that are not, for as long as patience goes."""
        _, missing = await asyncio.wait(pending, timeout=self.server.patience_s)
        if missing:
            raise Breach(f"{len(missing)} of {len(pending)} calls had no answer within {self.server.patience_s:g} s.")
        return [each.result() for each in pending]

    async def settle(self, calls: Sequence[Message]) -> list[Answer]:
        """Sends calls in one message, and those for which there is no room again, together, for as long as patience goes."""
        found = await self.answers(await self.write(calls))
        waits, end = pauses(), asyncio.get_running_loop().time() + self.server.patience_s
        while asyncio.get_running_loop().time() < end:
            refused = [number for number, answer in enumerate(found) if is_busy(answer)]
            if not refused:
                break
            await asyncio.sleep(next(waits))
            again = await self.answers(await self.write([calls[number] for number in refused]))
            for number, answer in zip(refused, again, strict=True):
                found[number] = answer
        return found

    async def end(self) -> None:
        """Says that no more calls come; what is in hand may still be answered."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def break_off(self) -> None:
        """Ends the stream at once, as one does that loses its connection."""
        self._call.cancel()
        await asyncio.wait([self._reading])

    async def ended(self) -> grpc.StatusCode:
        """Returns once the server has ended the stream, with the status."""
        await asyncio.wait([self._reading])
        return self.status or grpc.StatusCode.UNKNOWN

    async def _read(self) -> None:
        code = grpc.StatusCode.CANCELLED
        try:
            async for response in self._call:
                for answered in response.answers:
                    self._take(answered)
            code = await self._call.code()
        except grpc.aio.AioRpcError as e:
            code = e.code()
        finally:
            self.status = code
            if code is grpc.StatusCode.UNIMPLEMENTED:
                self._note("Describe says that the server takes batches, but Batch ended with the status UNIMPLEMENTED.")
            for waiting in self._waiting.values():
                if not waiting.answer.done():
                    waiting.answer.set_result(_unanswered(code))
            self._waiting.clear()

    def _take(self, answered: pb.BatchedAnswer) -> None:
        waiting = self._waiting.pop(answered.id, None)
        if waiting is None:
            how = "a second time" if answered.id in self._made else "though it was not made"
            self._note(f"The call {answered.id} of a stream was answered {how}.")
            return
        answer: Answer = Neither()
        match answered.WhichOneof("result"), waiting.undo:
            case "do_response", False:
                answer = done_answer(answered.do_response)
            case "undo_response", True:
                answer = undone_answer(answered.undo_response)
            case "status", _ if answered.status.code not in (0, *_STATUSES):
                self._note(f"A call of a stream was answered the status {answered.status.code}, which gRPC does not have.")
            case "status", _ if answered.status.code != 0:
                answer = Status(_STATUSES[answered.status.code], answered.status.message)
            case "status", _:
                self._note("A call of a stream was answered the status OK, which is no answer.")
            case result, undo:
                self._note(f"{'An undo' if undo else 'A do'} of a stream was answered {result or 'nothing'}.")
        if not waiting.answer.done():
            waiting.answer.set_result(answer)


class StreamingServer(Server):
    """The same server, whose calls all go by streams of batches: those that are made together in one message."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.channel, server.patience_s)
        self.stream = Stream(server)
        self._outbox: list[tuple[Message, float, Pending]] = []
        self._sending: asyncio.Task[None] | None = None

    async def _send(self, message: Message, timeout_s: float) -> Answer:
        """As by itself, but for `Breach` when an answer that came was none."""
        self.stream.raise_fault()
        answer: Pending = asyncio.get_running_loop().create_future()
        self._outbox.append((message, timeout_s, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            return Status(grpc.StatusCode.DEADLINE_EXCEEDED, "there was no answer in time")

    async def _send_all(self) -> None:
        while self._outbox:
            if self.stream.status is not None:
                self.stream = Stream(self)
            taken = [self._outbox.pop(0)]
            size = taken[0][0].ByteSize()
            while self._outbox and len(taken) < MAX_CALLS and (size := size + self._outbox[0][0].ByteSize()) <= MAX_BYTES:
                taken.append(self._outbox.pop(0))
            pending = await self.stream.write([message for message, _, _ in taken], [limit_s for _, limit_s, _ in taken])
            for (_, _, answer), found in zip(taken, pending, strict=True):
                found.add_done_callback(lambda found, answer=answer: None if answer.done() else answer.set_result(found.result()))  # type: ignore[misc] # of a lambda with a default
        self._sending = None


def is_busy(answer: Answer) -> bool:
    """There was no room for the call, and it was not begun with."""
    return isinstance(answer, Status) and answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def _unanswered(code: grpc.StatusCode) -> Status:
    return Status(grpc.StatusCode.UNAVAILABLE, f"the stream ended with {code.name} before its answer came")
