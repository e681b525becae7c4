"""An event loop without I/O and in virtual time, on which processes can be stopped and killed.

Time passes only when nothing is ready: then it jumps to the next timer. So a run is a function of what is put into it. The order of what is
ready is that in which it became ready, as asyncio promises; what happens at about the same time in several processes is ordered by the delays of
the network, which are random.

A *process* is a mark in the context of its tasks, which is passed on to all that these start. Those without one are the world: etcd, the network,
the script. A process that is killed gets no turn any more: nothing of it is cleaned up until the end of the run.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START_S = 1.0
"""What the clock says in the beginning."""


class SimProcess:
    """A process that can be stopped (as by SIGSTOP) and killed. `context` is what its tasks run in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.stopped = False
        self.held: list[_Handle] = []
        self.context = Context()
        self.context.run(_process.set, self)


_process: ContextVar[SimProcess | None] = ContextVar("sim_process", default=None)
WORLD = Context()
"""The context of what belongs to no process."""


def running_process() -> SimProcess | None:
    """The process whose code runs now; None: it is the world's."""
    return _process.get()


class Stalled(Exception):
    """A run does not come to an end: nothing is left to happen, or too much happens."""


class _Handle(asyncio.TimerHandle):
    __slots__ = ("process",)

    def __init__(self, when: float, callback: Callable[..., object], args: Any, loop: "SimLoop", context: Context | None) -> None:
        super().__init__(when, callback, args, loop, context)
        self.process = _process.get() if context is None else context.get(_process)

    def run(self) -> None:
        self._run()


class SimLoop(asyncio.AbstractEventLoop):
    """The loop. `run` it once."""

    def __init__(self) -> None:
        self.steps = 0
        self.failures: list[str] = []
        """What nobody caught."""
        self._now_s = START_S
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._scheduled = 0
        self._tasks: list[asyncio.Task[Any]] = []  # all of them: those of killed processes must not be collected before the end

    def run(self, ended: Callable[[], bool], max_steps: int) -> None:
        """Runs until `ended` says so. Raises `Stalled`."""
        asyncio.events._set_running_loop(self)  # noqa: SLF001 # what every event loop that is not asyncio's own has to call
        try:
            limit = self.steps + max_steps
            while not ended():
                if self.steps >= limit:
                    raise Stalled(f"it does not come to an end within {max_steps} steps")
                self._turn()
        finally:
            asyncio.events._set_running_loop(None)  # noqa: SLF001 # as above

    def _turn(self) -> None:
        self.steps += 1
        if self._ready:
            handle = self._ready.popleft()
        elif self._timers:
            when, _, handle = heapq.heappop(self._timers)
            self._now_s = max(self._now_s, when)
        else:
            raise Stalled("nothing is left that could happen")
        process = handle.process
        if handle.cancelled():
            return
        if process is not None and (process.stopped or process.dead):
            process.held.append(handle)
        else:
            handle.run()

    def go_on(self, process: SimProcess) -> None:
        """Lets a stopped process run again. What it missed it does now, in order."""
        process.stopped = False
        self._ready.extend(process.held)
        process.held.clear()

    def wind_up(self, processes: list[SimProcess]) -> None:
        """Cancels all that is left, that of killed processes too, and lets it end."""
        for process in processes:
            process.dead = False
            self.go_on(process)
        for _ in range(10):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.run(lambda: not (self._ready or self._timers) or not any(not task.done() for task in self._tasks), 100_000)
        self._ready.clear()
        self._timers.clear()
        self._tasks.clear()

    # what asyncio needs of a loop

    def time(self) -> float:
        return self._now_s

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        handle = _Handle(self._now_s, callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = _Handle(when, callback, args, self, context)
        self._scheduled += 1
        heapq.heappush(self._timers, (when, self._scheduled, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def start(self, process: SimProcess | None, coro: "Coroutine[Any, Any, T]") -> "asyncio.Task[T]":
        """Starts a task of a process, or of the world."""
        return self.create_task(coro, context=(WORLD if process is None else process.context).copy())

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Timers that were cancelled are passed over when they are due."""
