"""Submits that are made at the same time, in one turn of the event loop, share a call. One by itself has its own, and waits for no other."""

import asyncio
from dataclasses import dataclass, field

from sec_protos.v1 import coordinator_pb2 as pb

from sec_client.errors import SagaError
from sec_client.submissions import Definitions, KnownDefinitions, Sent, Submission, send_many, send_one
from sec_client.tracing import current_metadata
from sec_client.transport import Cluster, Metadata
from sec_client.views import SubmitResult

_Terms = tuple[bool, bool, Metadata]
"""What the sagas of one call have in common: whether they are started, whether they need their actions, and the trace that they belong to."""
_Waiting = tuple[Sent, "asyncio.Future[SubmitResult]"]


@dataclass(slots=True)
class _Turn:
    """What is submitted in one turn of the event loop."""

    definitions: Definitions
    waiting: list[_Waiting] = field(default_factory=list)


class Submits:
    """Those of one client."""

    def __init__(self, cluster: Cluster, known: KnownDefinitions) -> None:
        self._cluster = cluster
        self._known = known
        self._turns: dict[_Terms, _Turn] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    async def submit(self, submission: Submission, *, start: bool, require_actions: bool) -> SubmitResult:
        """See `sec_client.aio.Client.submit`."""
        loop, terms = asyncio.get_running_loop(), (start, require_actions, current_metadata())
        turn = self._turns.get(terms) or _Turn(Definitions(self._known))
        sent = turn.definitions.encode(submission)
        if isinstance(sent.result, SagaError):
            raise sent.result
        if terms not in self._turns:
            self._turns[terms] = turn
            loop.call_soon(self._send, terms)  # in the context of this submit: the trace is found there
        answer: asyncio.Future[SubmitResult] = loop.create_future()
        turn.waiting.append((sent, answer))
        return await answer

    def _send(self, terms: _Terms) -> None:
        start, require_actions, _ = terms
        waiting = [each for each in self._turns.pop(terms).waiting if not each[1].done()]
        if not waiting:
            return  # they were cancelled
        message = pb.SubmitSagasRequest(start_later=not start, require_actions=require_actions)
        making = self._one(*waiting[0], message) if len(waiting) == 1 else self._many(waiting, message)
        task = asyncio.get_running_loop().create_task(making)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        if len(waiting) == 1:
            waiting[0][1].add_done_callback(lambda _: task.cancel())

    async def _one(self, sent: Sent, answer: "asyncio.Future[SubmitResult]", terms: pb.SubmitSagasRequest) -> None:
        try:
            _tell(answer, await send_one(self._cluster, sent, terms))
        except Exception as error:
            _tell(answer, error)
        finally:
            answer.cancel()  # without effect, unless we are stopped

    async def _many(self, waiting: list[_Waiting], terms: pb.SubmitSagasRequest) -> None:
        try:
            await send_many(self._cluster, [sent for sent, _ in waiting], terms)
            for sent, answer in waiting:
                assert sent.result is not None
                _tell(answer, sent.result)
        except Exception as error:
            for _, answer in waiting:
                _tell(answer, error)
        finally:
            for _, answer in waiting:
                answer.cancel()


def _tell(answer: "asyncio.Future[SubmitResult]", result: SubmitResult | Exception) -> None:
    if answer.done():
        return  # nobody waits any more
    if isinstance(result, SubmitResult):
        answer.set_result(result)
    else:
        answer.set_exception(result)
