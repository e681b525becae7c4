"""What all calls of the services share: errors become statuses, and deadlines become bounds for the store."""

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc.aio

from sec.api.errors import abort, to_api_error
from sec.core.records import SecNodeName
from sec.node.door import Door
from sec.store.sagas import GiveUp

Context = grpc.aio.ServicerContext[Any, Any]

CALL_BUDGET_S = 10.0
"""How long a command is tried against a store that does not answer, when its caller has set no deadline."""
ANSWER_S = 0.2
"""What is left of the caller's deadline for the answer."""


class Answering(Protocol):
    """A servicer whose calls are `answered`."""

    @property
    def sec_node(self) -> SecNodeName: ...

    @property
    def door(self) -> Door: ...


Self = TypeVar("Self", bound=Answering)
Request = TypeVar("Request")
Response = TypeVar("Response")


def answered(
    call: Callable[[Self, Request, Context], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Awaitable[Response]]:
    """A unary call whose exceptions become statuses with details."""

    @functools.wraps(call)
    async def wrapper(self: Self, request: Request, context: Context) -> Response:
        try:
            return await call(self, request, context)
        except Exception as error:
            await abort(context, to_api_error(error, _saga_id(request)), self.sec_node)

    return wrapper


def answered_stream(
    call: Callable[[Self, Request, Context], AsyncIterator[Response]],
) -> Callable[[Self, Request, Context], AsyncIterator[Response]]:
    """The same for a call that answers a stream."""

    @functools.wraps(call)
    async def wrapper(self: Self, request: Request, context: Context) -> AsyncIterator[Response]:
        try:
            async for response in call(self, request, context):
                yield response
        except Exception as error:
            await abort(context, to_api_error(error, _saga_id(request)), self.sec_node)

    return wrapper


def writing(
    call: Callable[[Self, Request, Context], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Awaitable[Response]]:
    """An answered call that writes, and has to come in by the door."""
    return _by_the_door(call, starts=lambda _: False)


def starting(
    call: Callable[[Self, Request, Context], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Awaitable[Response]]:
    """The same for a call by which the node comes to own a saga, unless that is to be started later."""
    return _by_the_door(call, starts=lambda request: not getattr(request, "start_later", False))


def _by_the_door(
    call: Callable[[Self, Request, Context], Awaitable[Response]], starts: Callable[[Request], bool]
) -> Callable[[Self, Request, Context], Awaitable[Response]]:
    what = call.__name__.removesuffix("Saga").lower()

    @functools.wraps(call)
    async def wrapper(self: Self, request: Request, context: Context) -> Response:
        with self.door.write(subject(what, request), starts=starts(request)):
            return await call(self, request, context)

    return answered(wrapper)


def reading(
    call: Callable[[Self, Request, Context], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Awaitable[Response]]:
    """An answered call that reads or waits, and has to come in by the door."""

    @functools.wraps(call)
    async def wrapper(self: Self, request: Request, context: Context) -> Response:
        with self.door.read(subject("read", request)):
            return await call(self, request, context)

    return answered(wrapper)


def reading_stream(
    call: Callable[[Self, Request, Context], AsyncIterator[Response]],
) -> Callable[[Self, Request, Context], AsyncIterator[Response]]:
    """The same for a call that answers a stream."""

    @functools.wraps(call)
    async def wrapper(self: Self, request: Request, context: Context) -> AsyncIterator[Response]:
        with self.door.read(subject("watch", request)):
            async for response in call(self, request, context):
                yield response

    return answered_stream(wrapper)


def subject(what: str, request: object) -> str:
    """How a sentence about a call begins: 'The submit of saga "s1"'."""
    saga_id = _saga_id(request)
    return f'The {what} of saga "{saga_id}"' if saga_id else f"The {what}"


def give_up_before(context: Context) -> GiveUp:
    """Says when a command has to stop trying, so that its caller still hears why."""
    remaining_s = context.time_remaining()
    budget_s = CALL_BUDGET_S if remaining_s is None else max(0.0, min(CALL_BUDGET_S, remaining_s - ANSWER_S))
    deadline = time.monotonic() + budget_s
    return lambda: time.monotonic() >= deadline


def _saga_id(request: object) -> str:
    saga_id = getattr(request, "saga_id", "")
    return saga_id[:200] if isinstance(saga_id, str) else ""
