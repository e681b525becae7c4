"""The event loop of the tests: virtual time, as the simulator has it, and threads for plain handlers.

Time passes only when nothing else can happen. A plain handler runs on its thread while everything else stands still, one at a time, so that it takes
no time by the virtual clock, and a run with the same handlers comes out the same. While it waits for the loop itself (`call.db`, or
`asyncio.run_coroutine_threadsafe`), the others and the clock go on.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from sec.sim.loop import SimLoop, Stalled

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PATIENCE_S = 60.0
"""In real time, for a plain handler: longer means that it waits for something that cannot happen meanwhile."""


class _Job:
    """What runs, or is to run, on a thread. `asks`: how many coroutines it has given to the loop that have not ended."""

    def __init__(self, start: Callable[[], object]) -> None:
        self.start = start
        self.asks = 0


_thread = threading.local()


class VirtualLoop(SimLoop):
    """The loop. Every call of `run` goes on where the last one ended."""

    def __init__(self) -> None:
        super().__init__()
        self._posted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._jobs: deque[_Job] = deque()
        """That have not begun."""
        self._running: dict[_Job, None] = {}
        self._asking: _Job | None = None
        """On whose behalf the loop does what it does now."""
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="sec-testing")

    def close(self) -> None:
        """Lets go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _turn(self) -> None:
        if self._ready or not self._turn_of_a_thread():
            super()._turn()

    def _turn_of_a_thread(self) -> bool:
        """Takes what a thread has brought, and waits for it where one is at work. False: there is nothing of that kind to do."""
        try:
            self._posted.get_nowait()()
            return True
        except queue.Empty:
            pass
        if all(job.asks for job in self._running):
            if not self._jobs:
                return False
            job = self._jobs.popleft()
            self._running[job] = None
            job.start()
        try:
            self._posted.get(timeout=PATIENCE_S)()
        except queue.Empty:
            raise Stalled(
                f"a plain handler has not returned for {PATIENCE_S:g} s of real time; meanwhile nothing else happens, "
                "so it must not wait for another handler"
            ) from None
        return True

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self.create_future()
        context = copy_context()

        def work() -> None:
            _thread.job = job
            try:
                result = func(*args)
            except BaseException as error:
                caught = error
                self._posted.put(lambda: ended(lambda: future.set_exception(caught)))
            else:
                self._posted.put(lambda: ended(lambda: future.set_result(result)))
            finally:
                _thread.job = None

        def ended(tell: Callable[[], object]) -> None:
            del self._running[job]
            self.call_soon(lambda: None if future.done() else tell(), context=context)

        def start() -> None:
            try:
                (executor or self._threads).submit(work)
            except RuntimeError as error:  # it has been shut down
                refused = error
                self._posted.put(lambda: ended(lambda: future.set_exception(refused)))

        job = _Job(start)
        self._jobs.append(job)
        return future

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        job: _Job | None = getattr(_thread, "job", None)
        if job is None:
            return self.call_soon(callback, *args, context=context)
        where = copy_context() if context is None else context
        self._posted.put(lambda: self.call_soon(self._on_behalf_of, job, callback, args, context=where))
        return asyncio.Handle(callback, args, self, context=where)

    def _on_behalf_of(self, job: _Job, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._asking = job
        try:
            callback(*args)
        finally:
            self._asking = None

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        task = super().create_task(coro, name=name, context=context)
        if (job := self._asking) is not None:
            job.asks += 1

            def answered(_: object) -> None:
                job.asks -= 1

            task.add_done_callback(answered)
        return task


def _no_io(name: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"There is no I/O in virtual time, so the event loop has no {name}. Give the action server something in place of what it talks to, "
            "or let a plain handler talk to it: on its thread it may do what it likes."
        )

    return refuse


for _name in (
    "add_reader",
    "add_writer",
    "connect_read_pipe",
    "connect_write_pipe",
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "getaddrinfo",
    "getnameinfo",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_sendall",
    "sock_sendfile",
    "start_tls",
    "subprocess_exec",
    "subprocess_shell",
):
    setattr(VirtualLoop, _name, _no_io(_name))
