"""One stream of batched calls, as the contract has it (`Batch`): each call is delivered by itself, and what is ready is answered together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from sec_protos.v1 import action_server_pb2 as pb

from sec_client.kit.progress import Listener, Report

MAX_ANSWERS = 1_000
MAX_ANSWER_BYTES = 1024 * 1024
"""Of one message, unless a single answer is larger. What is ready meanwhile goes into the next."""

Deliver = Callable[[pb.BatchedCall, Listener], Awaitable[pb.BatchedAnswer]]
Cancel = Callable[[pb.BatchedCall], None]
Detach = Callable[[Coroutine[Any, Any, None]], object]
Write = Callable[[pb.BatchResponse], Awaitable[None]]


class BatchStream:
    """Serves one stream. `deliver` answers one call, and never raises; it may say how far that is, meanwhile; `detach` runs it to its end, whatever becomes of the stream. `cancel` is told of
    a call in hand whose effect is not wanted any more.

    It is read no further while its answers are not: what waits here is bounded by that, and by the deliveries that `deliver` lets in.
    """

    def __init__(self, deliver: Deliver, cancel: Cancel, detach: Detach) -> None:
        self._deliver = deliver
        self._cancel = cancel
        self._detach = detach
        self._in_hand: dict[int, pb.BatchedCall] = {}
        self._answers: list[pb.BatchedAnswer] = []
        self._reports: dict[int, Report] = {}
        """The last of each call, until it is sent or the call is answered."""
        self._changed = asyncio.Event()
        self._written = asyncio.Event()
        self._ending = False

    def end(self) -> None:
        """Lets `serve` return when what is in hand has been answered."""
        self._ending = True
        self._changed.set()

    async def serve(self, requests: AsyncIterator[pb.BatchRequest], write: Write) -> None:
        """Takes calls until the other side ends the stream, or `end`; returns when all of them are answered. Cancelled when the connection breaks."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while self._in_hand or self._answers or not self._ending:
                await self._changed.wait()
                self._changed.clear()
                while self._answers or self._reports:
                    await write(pb.BatchResponse(answers=self._take(), progress=self._take_reports()))
                    self._written.set()
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if not reading.cancelled() and (error := reading.exception()) is not None:
            raise error

    async def _read(self, requests: AsyncIterator[pb.BatchRequest]) -> None:
        try:
            async for request in requests:
                for call in request.calls:
                    self._in_hand[call.id] = call
                    self._detach(self._one(call))
                for number in request.cancelled:
                    if (unwanted := self._in_hand.get(number)) is not None:
                        self._cancel(unwanted)
                while len(self._answers) >= MAX_ANSWERS:
                    self._written.clear()
                    await self._written.wait()
        finally:
            self.end()

    async def _one(self, call: pb.BatchedCall) -> None:
        try:
            answer = await self._deliver(call, partial(self._report, call.id))
            self._answers.append(answer)
        finally:
            self._reports.pop(call.id, None)
            del self._in_hand[call.id]
            self._changed.set()

    def _report(self, number: int, report: Report) -> None:
        self._reports[number] = report
        self._changed.set()

    def _take_reports(self) -> list[pb.BatchedProgress]:
        numbers = list(self._reports)[:MAX_ANSWERS]
        reports = [(number, self._reports.pop(number)) for number in numbers]
        return [pb.BatchedProgress(id=number, fraction=r.fraction, message=r.message) for number, r in reports]

    def _take(self) -> list[pb.BatchedAnswer]:
        size = count = 0
        for answer in self._answers[:MAX_ANSWERS]:
            size += answer.ByteSize()
            if count and size > MAX_ANSWER_BYTES:
                break
            count += 1
        taken = self._answers[:count]
        del self._answers[:count]
        return taken
