"""The gRPC service of an action server: it takes deliveries, puts those of one key in a row, and answers what the rules say.

A delivery that has begun runs to its end, whether its caller still waits or not, and its answer is stored. That holds too when a higher epoch
arrives for its saga meanwhile: the effect stays, and the new owner, who knows of every call that was ever dispatched, sends the same key again, waits here
behind the first delivery, and gets its answer. So the epoch is checked when a delivery begins, in the commit that marks it begun, and not again.
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio
from msgspec import Struct
from sec_model import Payload
from sec_model.codec import payload_to_proto
from sec_model.schemas_codec import schemas_to_proto
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc, common_pb2

from sec_client.kit.actions import Action, Actions, Handler
from sec_client.kit.batches import BatchStream
from sec_client.kit.call import CANCELLED_CODE, REAL_TIME, ActionFailed, Call, Clock, Unavailable
from sec_client.kit.cancelling import Cancellation
from sec_client.kit.logs import logged_as
from sec_client.kit.progress import Listener, Progress
from sec_client.kit.rules import Delivery, Entry, InDoubt, Mark, Repeat, Run, Stale
from sec_client.kit.store import Store, StoreError
from sec_client.kit.typed import BadInput, Signature, plain
from sec_client.payloads import encode
from sec_client.tracing import TRACEPARENT, span

MAX_ERROR_CHARACTERS = 4000
"""Of an error's message: the contract keeps 8 KiB, and a status has to fit into HTTP/2 headers of that size."""
BAD_INPUT_CODE = "bad_input"
"""Code of the failure that a do answers when what it got is not what its handler's annotations say."""
UNDONE_CODE = "undone"
"""Code of the failure that a do answers after its undo."""

T = TypeVar("T")
R = TypeVar("R", pb.DoResponse, pb.UndoResponse)
Message = pb.DoRequest | pb.UndoRequest
Response = pb.DoResponse | pb.UndoResponse
Context = grpc.aio.ServicerContext[Any, Any]


class Status(Struct, frozen=True, gc=False):
    """A delivery that ends without an answer: the gRPC status, and a sentence."""

    code: grpc.StatusCode
    message: str


class Output(Struct, frozen=True, gc=False):
    """The action took effect (of an undo: nothing of it is left)."""

    payload: bytes = b""


class Failure(Struct, frozen=True, gc=False):
    """The action has no effect (of an undo: it cannot be done)."""

    error: bytes


Answer = Status | Output | Failure


@dataclass(frozen=True, slots=True)
class Incoming:
    """A delivery as it arrives, before the kit has looked at it: alone, or in a batch with others.

    `metadata` is that of the gRPC call, where it is text; of a batch, that of the stream, with the call's own `traceparent`.
    """

    message: Message
    metadata: Mapping[str, str]
    batched: bool


Around = Callable[[Call], AbstractContextManager[None]]
"""What is around each handler, within what the kit does for it: for tests. It may raise before the handler begins, and when it has ended."""
Middleware = Callable[[Incoming, Callable[[], Awaitable[Response | Status]]], Awaitable[Response | Status]]
"""What is around each delivery: gets it, and what delivers it; answers what that answers, or something else."""


_NOTHING = nullcontext()


def nothing_around(call: Call) -> AbstractContextManager[None]:
    """The default of `Around`."""
    return _NOTHING


class _Key:
    """The row of deliveries of one idempotency key. `cancellation`: of its dos."""

    def __init__(self) -> None:
        self.cancellation = Cancellation()
        self.progress = Progress()
        self.lock = asyncio.Lock()
        self.users = 0


class ActionService(action_server_pb2_grpc.ActionServerServicer):
    """Serves the actions. `max_concurrency` bounds the deliveries in hand; one more is answered RESOURCE_EXHAUSTED at once."""

    def __init__(
        self,
        server_name: str,
        actions: Actions,
        store: Store,
        *,
        max_concurrency: int,
        max_output_bytes: int,
        batches: bool,
        middleware: Middleware | None = None,
        clock: Clock = REAL_TIME,
        around: Around = nothing_around,
        logger: logging.Logger,
    ) -> None:
        self._server_name = server_name
        self._actions = actions
        self._store = store
        self._max_concurrency = max_concurrency
        self._max_output_bytes = max_output_bytes
        self._batches = batches
        self._middleware = middleware
        self._clock = clock
        self._around = around
        self._logger = logger
        self._in_hand = 0
        self._keys: dict[str, _Key] = {}
        self._running: set[asyncio.Future[Any]] = set()
        self._streams: set[BatchStream] = set()
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="sec-action")

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802 # gRPC's name
        return pb.DescribeResponse(server_name=self._server_name, actions=self.descriptions(), batches=self._batches)

    async def Do(self, request: pb.DoRequest, context: Context) -> pb.DoResponse:  # noqa: N802
        answer = await self.deliver(request, context.time_remaining(), _metadata(context))
        return await _reply(context, pb.DoResponse, answer)

    async def Undo(self, request: pb.UndoRequest, context: Context) -> pb.UndoResponse:  # noqa: N802
        answer = await self.deliver(request, context.time_remaining(), _metadata(context))
        return await _reply(context, pb.UndoResponse, answer)

    async def Batch(  # type: ignore[override] # the stubs know only the form that yields its answers # noqa: N802
        self, requests: AsyncIterator[pb.BatchRequest], context: Context
    ) -> None:
        if not self._batches:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f'The action server "{self._server_name}" takes no batches.')
        metadata = _metadata(context)
        stream = BatchStream(lambda call, heard: self._answer_batched(call, metadata, heard), self._cancel, self._detach)
        self._streams.add(stream)
        try:
            await stream.serve(requests, context.write)
        finally:
            self._streams.discard(stream)

    async def _answer_batched(self, call: pb.BatchedCall, metadata: Mapping[str, str], heard: Listener) -> pb.BatchedAnswer:
        message = call.undo_request if call.WhichOneof("request") == "undo_request" else call.do_request
        if call.traceparent:
            metadata = {**metadata, TRACEPARENT: call.traceparent}
        try:
            answer = await self.deliver(message, call.timeout_s, metadata, batched=True, heard=heard)
        except Exception as e:
            self._logger.exception("saga %s node %s: the delivery ended in an error", message.call.saga_id, message.call.node)
            answer = Status(grpc.StatusCode.UNKNOWN, f"{type(e).__name__}: {e}"[:MAX_ERROR_CHARACTERS])
        batched = pb.BatchedAnswer()  # filled in place: a message made of messages is slow to make
        batched.id = call.id
        match answer:
            case pb.DoResponse():
                batched.do_response.CopyFrom(answer)
            case pb.UndoResponse():
                batched.undo_response.CopyFrom(answer)
            case Status(code, text):
                batched.status.code, batched.status.message = code.value[0], text
        return batched

    def _cancel(self, call: pb.BatchedCall) -> None:
        """Nobody wants the effect of this call any more. Its handler may be that of an earlier call with the same key, or not have begun."""
        if call.WhichOneof("request") == "do_request":
            self.cancel(call.do_request)

    def cancel(self, message: pb.DoRequest) -> None:
        """Nobody wants the effect of this do any more, which is in hand or about to be delivered."""
        message.call.cancelled = True
        if (key := self._keys.get(message.call.idempotency_key)) is not None:
            key.cancellation.set()

    async def deliver(
        self,
        message: Message,
        remaining_s: float | None,
        metadata: Mapping[str, str],
        *,
        batched: bool = False,
        heard: Listener | None = None,
    ) -> Response | Status:
        """Delivers a call and answers it. `remaining_s` is how long its caller waits (None: for ever); `batched`: the caller's task is ours to keep, and is
        not cancelled when the caller goes away. `heard` is told how far the action is."""
        if self._middleware is None:
            return await self._respond(message, remaining_s, metadata, batched, heard)
        around = partial(self._respond, message, remaining_s, metadata, batched, heard)
        return await self._middleware(Incoming(message, metadata, batched), around)

    async def _respond(
        self, message: Message, remaining_s: float | None, metadata: Mapping[str, str], batched: bool, heard: Listener | None
    ) -> Response | Status:
        answer = await self._deliver(message, remaining_s, metadata.get(TRACEPARENT, ""), detached=batched, heard=heard)
        if isinstance(answer, Status):
            return answer
        return _undo_response(answer) if isinstance(message, pb.UndoRequest) else _do_response(answer)

    def end_streams(self) -> None:
        """Lets the streams end when what they have in hand is answered."""
        for stream in self._streams:
            stream.end()

    def descriptions(self) -> list[pb.ActionDescription]:
        """The actions as the contract describes them."""
        return [
            pb.ActionDescription(name=a.name, summary=a.summary, schemas=schemas_to_proto(a.schemas[0]) if a.schemas[0] else None)
            for a in self._actions
        ]

    async def finish(self, grace_s: float) -> int:
        """Waits for the deliveries in hand, those without a caller too; answers how many had to be given up."""
        if self._running:
            await asyncio.wait(self._running, timeout=max(0.0, grace_s))
        left = list(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        return len(left)

    async def _deliver(
        self,
        message: Message,
        remaining_s: float | None,
        traceparent: str,
        *,
        detached: bool = False,
        heard: Listener | None = None,
    ) -> Answer:
        """`detached`: our task is not the caller's, so that it may go away at any time. `heard` is told how far the action is."""
        about = message.call
        action = self._actions.by_name.get(about.action)
        if action is None:
            return Status(
                grpc.StatusCode.UNIMPLEMENTED, f'The action server "{self._server_name}" does not offer "{about.action}".'
            )
        if not about.idempotency_key or not about.saga_uid:
            return Status(grpc.StatusCode.INVALID_ARGUMENT, "A call needs an idempotency_key and a saga_uid.")
        if self._in_hand >= self._max_concurrency:
            return Status(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f'The action server "{self._server_name}" has {self._in_hand} calls in hand and takes no more.',
            )
        self._in_hand += 1
        key = self._keys.get(about.idempotency_key)
        if key is None:
            key = self._keys[about.idempotency_key] = _Key()
        key.users += 1
        if about.cancelled:
            key.cancellation.set()
        if heard is not None:
            key.progress.listen(heard)
        task: asyncio.Task[Answer] | None = None
        begun = False
        try:
            if key.lock.locked():
                if (refusal := await self._remember_epoch(about)) is not None:
                    return refusal
                if isinstance(message, pb.UndoRequest):
                    key.cancellation.set()
            await key.lock.acquire()
            begun = True
            # From here on it runs to its end, although its caller may go away.
            running = self._run(action, message, remaining_s, traceparent, key)
            if detached:
                return await running
            task = self._detach(running)
            task.add_done_callback(lambda _: self._leave(about.idempotency_key, key, begun=True))
            return await asyncio.shield(task)
        finally:
            if heard is not None:
                key.progress.forget(heard)
            if task is None:
                self._leave(about.idempotency_key, key, begun=begun)

    def _detach(self, running: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs something to its end, whatever becomes of its caller."""
        task = asyncio.get_running_loop().create_task(running)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _leave(self, name: str, key: _Key, *, begun: bool) -> None:
        if begun:
            key.lock.release()
        self._in_hand -= 1
        key.users -= 1
        if key.users == 0:
            key.progress.close()
            del self._keys[name]

    async def _remember_epoch(self, about: pb.Call) -> Status | None:
        """For a delivery that has to wait for another: its epoch counts from now on, not from when its turn comes."""
        try:
            highest = await self._store.remember_epoch(about.saga_uid, about.epoch)
        except StoreError as e:
            return Status(grpc.StatusCode.UNAVAILABLE, str(e))
        return _stale(about, highest) if highest > about.epoch else None

    async def _run(self, action: Action, message: Message, remaining_s: float | None, traceparent: str, key: _Key) -> Answer:
        about = message.call
        undo = isinstance(message, pb.UndoRequest)
        has_output = isinstance(message, pb.UndoRequest) and message.HasField("output")
        delivery = Delivery(about.idempotency_key, about.saga_uid, about.epoch, undo, has_output)
        try:
            async with self._store.hold(delivery.key):
                verdict = await self._store.begin(delivery)
                match verdict:
                    case Stale(highest):
                        return _stale(about, highest)
                    case InDoubt():
                        text = f'The undo of node "{about.node}" of saga "{about.saga_id}" has begun and has not finished.'
                        return Status(grpc.StatusCode.UNAVAILABLE, text)
                    case Repeat(entry):
                        return _repeated(entry, undo)
                    case Run(output, first):
                        call = Call(
                            message,
                            delivery,
                            store=self._store,
                            logger=self._logger,
                            known_output=output,
                            remaining_s=remaining_s,
                            traceparent=traceparent,
                            cancellation=None if undo else key.cancellation,
                            clock=self._clock,
                            progress=key.progress,
                        )
                        return await self._handle(action, call, delivery, output, first=first)
        except StoreError as e:
            self._logger.error("saga %s node %s: %s", about.saga_id, about.node, e)
            return Status(grpc.StatusCode.UNAVAILABLE, str(e))

    async def _handle(self, action: Action, call: Call, delivery: Delivery, known_output: bytes | None, *, first: bool) -> Answer:
        ended = False
        try:
            if first and call.cancelled:
                text = f'The saga does not want node "{call.node}" any more: the action was not begun.'
                raise ActionFailed(text, code=CANCELLED_CODE)
            handler, signature = (action.undo_handler, action.undo_signature) if delivery.undo else (action.do, action.do_signature)
            arguments = _arguments(signature, call, delivery, first=first)
            value = None
            with self._around(call):
                if handler is not None:
                    with logged_as(call.fields), span(call.traceparent, call.fields):
                        value = await self._invoke(handler, call, arguments, on_the_loop=signature.is_async)
            output = b"" if delivery.undo else self._output(value)
            ended = True
            entry = Entry(Mark.UNDONE) if delivery.undo else Entry(Mark.DONE, output)
            await self._store.finish(delivery, entry, call.effects)
            return Output(output)
        except ActionFailed as e:
            if call.effects is not None:
                await self._store.drop_effects(call.effects, in_use=False)
            failure = _failure(e)
            entry = Entry(Mark.UNDO_FAILED, known_output) if delivery.undo else Entry(Mark.FAILED, failure)
            await self._store.finish(delivery, entry, None)
            return Failure(failure)
        except BaseException as e:
            if ended:  # the store has dropped the effects
                raise
            if call.effects is not None:
                await self._store.drop_effects(call.effects, in_use=not isinstance(e, Exception))
            if not isinstance(e, Exception) or isinstance(e, StoreError):
                raise
            if isinstance(e, Unavailable):
                call.log.info("unavailable: %s", e)
                return Status(grpc.StatusCode.UNAVAILABLE, str(e)[:MAX_ERROR_CHARACTERS] or "The action is not available now.")
            call.log.exception("the handler raised, so the outcome is not known")
            return Status(grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e}"[:MAX_ERROR_CHARACTERS])

    async def _invoke(self, handler: Handler, call: Call, arguments: Mapping[str, Any], *, on_the_loop: bool) -> Any:
        try:
            if on_the_loop:
                return await handler(call, **arguments)
            context, loop = contextvars.copy_context(), asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: context.run(_call_plain, handler, call, arguments))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("something that the handler awaited was cancelled") from None

    def _output(self, value: Any) -> bytes:
        try:
            payload = encode(value)
        except TypeError:  # it has more than JSON has
            payload = encode(plain(value))
        if len(payload.data) > self._max_output_bytes:
            raise ValueError(f"the output has {len(payload.data)} bytes; at most {self._max_output_bytes} are allowed")
        return payload_to_proto(payload).SerializeToString()


def _arguments(signature: Signature, call: Call, delivery: Delivery, *, first: bool) -> dict[str, Any]:
    """What the handler gets beside the call. Raises `ActionFailed` for what is not as annotated, where that is certain to have had no effect.

    It is not when an earlier call with this key, perhaps to an older version of this server, may have had the effect, and never in an undo, where a
    failure would say that the effect can never be taken back: both are unknown outcomes, which are called again, and heal when the server is mended.
    """
    try:
        return signature.arguments(call)
    except BadInput as e:
        if delivery.undo or not first:
            raise
        raise ActionFailed(str(e), code=BAD_INPUT_CODE) from e


def _call_plain(function: Handler, call: Call, arguments: Mapping[str, Any]) -> Any:
    try:
        return function(call, **arguments)
    except (StopIteration, SystemExit) as e:  # must not reach the event loop, where they mean something else
        raise RuntimeError(f"the handler raised {type(e).__name__}") from e


def _stale(about: pb.Call, highest: int) -> Status:
    text = f'Epoch {about.epoch} of saga "{about.saga_id}" is stale: an owner with epoch {highest} has called.'
    return Status(grpc.StatusCode.FAILED_PRECONDITION, text)


def _repeated(entry: Entry, undo: bool) -> Answer:
    if undo:
        return Output()
    match entry.mark:
        case Mark.DONE:
            return Output(entry.answer or b"")
        case Mark.FAILED:
            return Failure(entry.answer or b"")
        case _:
            return Failure(_failure(ActionFailed("The action was undone before this call arrived.", code=UNDONE_CODE)))


def _failure(error: ActionFailed) -> bytes:
    data = None
    if error.data is not None:
        try:
            data = payload_to_proto(encode(error.data))
        except (TypeError, ValueError):  # an error must get through whatever is attached to it
            data = payload_to_proto(Payload("text/plain", repr(error.data).encode(errors="replace")))
    message = error.message[:MAX_ERROR_CHARACTERS].encode(errors="replace").decode()
    return common_pb2.Error(message=message, code=error.code, data=data).SerializeToString()


def _do_response(answer: Output | Failure) -> pb.DoResponse:
    response = pb.DoResponse()
    match answer:
        case Output(payload):
            response.output.SetInParent()
            response.output.ParseFromString(payload)
        case Failure(error):
            response.failure.SetInParent()
            response.failure.ParseFromString(error)
    return response


def _undo_response(answer: Output | Failure) -> pb.UndoResponse:
    match answer:
        case Output():
            return pb.UndoResponse()
        case Failure(error):
            return pb.UndoResponse(failure=common_pb2.Error.FromString(error))


def _metadata(context: Context) -> dict[str, str]:
    return {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}


async def _reply(context: Context, kind: type[R], answer: Response | Status) -> R:
    if isinstance(answer, Status):
        await context.abort(answer.code, answer.message)
    assert isinstance(answer, kind), f"The middleware answers a {type(answer).__name__} where a {kind.__name__} is due."
    return answer
