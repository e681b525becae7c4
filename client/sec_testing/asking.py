"""The client's way to the SEC nodes of a tester: the services of the API, called in the node's process, without gRPC."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc
import grpc.aio
from sec_client import aio
from sec_client.errors import from_rpc_error
from sec_client.transport import Cluster, Metadata, worth_repeating

from sec.sim.loop import SimLoop

if TYPE_CHECKING:
    from sec_testing.nodes import Member

TRIES = 200
PAUSE_S = 0.05
"""Between tries, of which a takeover takes a few."""


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, Any]]) -> None:
        super().__init__(details)
        self.error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


class _Context:
    """As much of a gRPC context as the services use."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()) -> NoReturn:
        raise _Aborted(code, details, trailing_metadata)


class _Stub:
    """Has each call of the Coordinator service, of one SEC node."""

    def __init__(self, loop: SimLoop, member: "Member") -> None:
        self._loop = loop
        self._member = member

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(message: object, *, metadata: Metadata = (), **_: object) -> Any:
            member = self._member
            if member.process.dead:
                raise unavailable(member.name)
            answer: asyncio.Future[Any] = self._loop.create_future()

            async def serve() -> None:
                try:
                    response = await getattr(member.coordinator, name)(message, _Context(metadata))
                except _Aborted as aborted:
                    if not answer.done():
                        answer.set_exception(aborted.error)
                else:
                    if not answer.done():
                        answer.set_result(response)

            member.asked.append(answer)
            self._loop.start(member.process, serve())
            try:
                return await answer
            finally:
                member.asked.remove(answer)

        return call


def unavailable(name: str) -> grpc.aio.AioRpcError:
    """What a client hears of an SEC node that is dead."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), f'The SEC node "{name}" is dead.'
    )


class InProcessCluster(Cluster):
    """The SEC nodes that live, for a client. A call is made again, of the next one, as long as that can help."""

    def __init__(self, loop: SimLoop, members: "Callable[[], Sequence[Member]]") -> None:
        super().__init__("in-process:1")
        self._loop = loop
        self._members = members

    async def call(
        self,
        method: Callable[[Any], Any],
        message: Any,
        *,
        saga_id: str = "",
        budget_s: float | None = None,
        attempt_s: float | None = None,
        metadata: Metadata = (),
    ) -> Any:
        repeated = False
        for attempt in range(TRIES):
            members = [m for m in self._members() if not m.process.dead]
            try:
                if not members:
                    raise unavailable("any")
                return await method(cast("Any", _Stub(self._loop, members[attempt % len(members)])))(message, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                told = from_rpc_error(error, address="the test", saga_id=saga_id)
                told.repeated = repeated
                if not worth_repeating(error) or attempt == TRIES - 1:
                    raise told from None
                repeated = repeated or not told.definite
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("the last try ends it")


class InProcessClient(aio.Client):
    """A client of them."""

    def __init__(self, cluster: Cluster) -> None:
        self._talk_to(cluster)
