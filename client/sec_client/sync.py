"""The client for programs without an event loop: the asyncio client on a thread of its own."""

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from sec_model import Deadline, Definition, Saga
from sec_model.builder import Seconds
from sec_model.commands import Command

from sec_client import aio
from sec_client.errors import SagaError
from sec_client.submissions import Submission
from sec_client.transport import DEFAULT_TIMEOUT_S, Metadata, Tls
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

T = TypeVar("T")


class Client:
    """A blocking client of a cluster. The methods are those of `sec_client.aio.Client` and raise the same errors.

    May be used from several threads at once. A context manager; `close` may also be left to the end of the program.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        tls: Tls | None = None,
        metadata: Mapping[str, str] | Metadata = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client = aio.Client(addresses, tls=tls, metadata=metadata, timeout_s=timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sec-client", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _shut_down, self._loop, self._thread, self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends calls under way with an error and closes the connections. May be repeated."""
        self._finalizer()

    def submit(
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
        """Stores a saga and, unless `start` is false, starts it. See `sec_client.aio.Client.submit`."""
        return self._run(
            self._client.submit(
                definition,
                params=params,
                saga_id=saga_id,
                labels=labels,
                start=start,
                require_actions=require_actions,
                deadline=deadline,
            )
        )

    def submit_many(
        self, submissions: Iterable[Submission], *, start: bool = True, require_actions: bool = False
    ) -> Sequence[SubmitResult | SagaError]:
        """Submits many sagas, hundreds with one call, and answers what became of each. See `sec_client.aio.Client.submit_many`."""
        return self._run(self._client.submit_many(list(submissions), start=start, require_actions=require_actions))

    def start(self, saga_id: str) -> None:
        """Starts a saga that was submitted with `start=False`. Raises `WrongState` when it has been started or has ended."""
        self._run(self._client.start(saga_id))

    def delete(self, saga_id: str) -> None:
        """Removes a saga that has ended or was never started, for good. See `sec_client.aio.Client.delete`."""
        self._run(self._client.delete(saga_id))

    def command(self, saga_id: str, command: Command, *, by: str = "", command_id: str | None = None) -> str:
        """Gives a saga a command, and returns its id when it is durable. See `sec_client.aio.Client.command`."""
        return self._run(self._client.command(saga_id, command, by=by, command_id=command_id))

    def signal(self, saga_id: str, node: str, value: Any = None, *, by: str = "", command_id: str | None = None) -> str:
        """Sends the event that a signal node waits for, and returns the command's id. See `sec_client.aio.Client.signal`."""
        return self._run(self._client.signal(saga_id, node, value, by=by, command_id=command_id))

    def taken_up(self, saga_id: str, command_id: str, *, timeout_s: float = 10.0) -> LogRecord:
        """Waits until the owner of a saga has taken up a command. See `sec_client.aio.Client.taken_up`."""
        return self._run(self._client.taken_up(saga_id, command_id, timeout_s=timeout_s))

    def get(self, saga_id: str, *, outputs: bool = True) -> SagaView:
        """The saga and all of its nodes, as of now."""
        return self._run(self._client.get(saga_id, outputs=outputs))

    def list_page(
        self,
        *,
        states: Collection[SagaState | str] = (),
        name: str = "",
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> SagaPage:
        """One page of sagas. See `sec_client.aio.Client.list_page`."""
        return self._run(
            self._client.list_page(states=states, name=name, labels=labels, owner=owner, page_size=page_size, page_token=page_token)
        )

    def list(
        self,
        *,
        states: Collection[SagaState | str] = (),
        name: str = "",
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        page_size: int = 0,
    ) -> Iterator[SagaSummary]:
        """All sagas that the filters let through, page by page."""
        return self._iterate(lambda: self._client.list(states=states, name=name, labels=labels, owner=owner, page_size=page_size))

    def watch(self, saga_id: str, from_sequence: int = 1) -> Iterator[LogRecord]:
        """The records of a saga, the new ones as they become durable. See `sec_client.aio.Client.watch`."""
        return self._iterate(lambda: self._client.watch(saga_id, from_sequence))

    def wait(self, saga_id: str, *, timeout_s: float | None = None) -> SagaResult:
        """Waits until the saga has ended or is stuck. See `sec_client.aio.Client.wait`."""
        return self._run(self._client.wait(saga_id, timeout_s=timeout_s))

    def run(
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
        """Submits a saga and waits for it. `.result()` of what it returns is the output, or raises."""
        return self._run(
            self._client.run(
                definition,
                params=params,
                saga_id=saga_id,
                labels=labels,
                require_actions=require_actions,
                deadline=deadline,
                timeout_s=timeout_s,
            )
        )

    def log(self, saga_id: str, from_sequence: int = 1) -> Iterator[LogRecord]:
        """The records of the saga log as it stands, from `from_sequence` on; see `aio.Client.log`."""
        return self._iterate(lambda: self._client.log(saga_id, from_sequence))

    def nodes(self) -> NodeList:
        """The SEC nodes that hold a session now, and which of them answered."""
        return self._run(self._client.nodes())

    def drain(self, name: str, *, undo: bool = False) -> None:
        """Lets an SEC node hand over its sagas and take no new ones; `undo` takes that back."""
        self._run(self._client.drain(name, undo=undo))

    def actions(self) -> Sequence[OfferedAction]:
        """The actions that are offered now, and by which action servers."""
        return self._run(self._client.actions())

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if not self._finalizer.alive:
            call.close()
            raise SagaError("The client is closed.", code="client_closed")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            raise SagaError("The client was closed during the call.", code="client_closed", definite=False) from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise

    def _iterate(self, open_iterator: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        iterator = open_iterator()
        try:
            while True:
                try:
                    yield self._run(_next(iterator))
                except StopAsyncIteration:
                    return
        finally:
            if self._finalizer.alive:
                self._run(_close(iterator))


async def _next(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)


async def _close(iterator: AsyncIterator[Any]) -> None:
    await iterator.aclose()  # type: ignore[attr-defined] # the client's iterators are generators


def _shut_down(loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: aio.Client) -> None:
    async def end() -> None:
        calls = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await client.close()
        await loop.shutdown_asyncgens()

    if threading.current_thread() is thread:  # collected by its own loop, where there is nothing to wait for
        loop.stop()
        return
    asyncio.run_coroutine_threadsafe(end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
