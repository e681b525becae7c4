"""The event loop of the simulator: virtual time, and processes that are stopped and killed."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sec.sim.loop import START_S, SimLoop, SimProcess, Stalled, running_process


class Run:
    """A loop, and what its tasks noted, each with the time."""

    def __init__(self) -> None:
        self.loop = SimLoop()
        self.noted: list[tuple[str, float]] = []

    def note(self, what: str) -> None:
        self.noted.append((what, self.loop.time() - START_S))

    def until_done(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.start(None, work)
        self.loop.run(task.done, 10_000)
        task.result()

    async def every_second(self, name: str) -> None:
        while True:
            self.note(name)
            await asyncio.sleep(1)


def test_time_jumps_to_the_next_timer() -> None:
    run = Run()

    async def work() -> None:
        await asyncio.sleep(3600)
        run.note("slept")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.Event().wait()
        run.note("timed out")

    run.until_done(work())

    assert run.noted == [("slept", 3600.0), ("timed out", 3600.5)]


def test_what_is_ready_runs_in_the_order_in_which_it_became_ready() -> None:
    run = Run()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for name in ("a", "b", "c"):
            loop.call_soon(run.note, name)
        loop.call_later(0, run.note, "d")
        await asyncio.sleep(0.1)

    run.until_done(work())

    assert [name for name, _ in run.noted] == ["a", "b", "c", "d"]


def test_a_stopped_process_does_afterwards_what_it_missed_and_sees_what_the_time_is() -> None:
    run, process = Run(), SimProcess("sec-1")

    async def script() -> None:
        run.loop.start(process, run.every_second("tick"))
        await asyncio.sleep(1.5)
        process.stopped = True
        await asyncio.sleep(3)
        run.note("go on")
        run.loop.go_on(process)
        await asyncio.sleep(1.2)

    run.until_done(script())

    assert run.noted == [("tick", 0.0), ("tick", 1.0), ("go on", 4.5), ("tick", 4.5), ("tick", 5.5)]


def test_a_killed_process_does_nothing_more_and_cleans_nothing_up_before_the_end() -> None:
    run, process = Run(), SimProcess("sec-1")

    async def doomed() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            run.note("cleaned up")

    async def script() -> None:
        run.loop.start(process, doomed())
        await asyncio.sleep(0.5)
        process.dead = True
        await asyncio.sleep(5)
        run.note("the end")

    run.until_done(script())
    run.loop.wind_up([process])

    assert [what for what, _ in run.noted] == ["the end", "cleaned up"]


def test_what_a_process_starts_belongs_to_it() -> None:
    run, process = Run(), SimProcess("sec-1")
    seen: list[SimProcess | None] = []

    def look() -> None:
        seen.append(running_process())

    async def child() -> None:
        look()

    async def parent() -> None:
        await asyncio.create_task(child())
        asyncio.get_running_loop().call_later(1, look)

    async def script() -> None:
        await run.loop.start(process, parent())
        await asyncio.sleep(2)
        look()

    run.until_done(script())

    assert seen == [process, process, None]


@pytest.mark.parametrize("endless", [True, False])
def test_a_run_that_does_not_come_to_an_end_is_noticed(endless: bool) -> None:
    run = Run()

    async def spin() -> None:
        if endless:
            run.loop.call_soon(again)
        await asyncio.Event().wait()

    def again() -> None:
        run.loop.call_soon(again)

    task = run.loop.start(None, spin())
    because: str = "does not come to an end" if endless else "nothing is left"
    ended: Callable[[], bool] = task.done
    with pytest.raises(Stalled, match=because):
        run.loop.run(ended, 1000)
    run.loop.wind_up([])
