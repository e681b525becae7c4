"""Virtual time and threads: `VirtualLoop`."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from sec_client import Saga, action
from sec_client.kit import ActionServer, Call, SqliteStore
from sec_testing import SagaTester, loop
from sec_testing.loop import VirtualLoop

from sec.sim.loop import Stalled

T = TypeVar("T")


def drive(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What comes of it, and how much virtual time it took."""
    virtual = VirtualLoop()  # type: ignore[abstract] # what is for I/O is not there
    began = virtual.time()
    task = virtual.start(None, work)
    try:
        virtual.run(task.done, 100_000)
        return task.result(), virtual.time() - began
    finally:
        task.cancel()
        virtual.close()


def test_a_thread_takes_no_virtual_time() -> None:
    async def work() -> str:
        naps = [asyncio.to_thread(time.sleep, 0.05) for _ in range(3)]
        await asyncio.gather(asyncio.sleep(0), *naps)
        return "done"

    assert drive(work()) == ("done", 0.0)


def test_timers_wait_for_threads_and_not_the_other_way_round() -> None:
    order: list[str] = []

    async def work() -> None:
        async def later() -> None:
            await asyncio.sleep(0.001)
            order.append("timer")

        timer = asyncio.create_task(later())
        await asyncio.to_thread(lambda: (time.sleep(0.05), order.append("thread")))
        order.append("answered")
        await timer

    drive(work())
    assert order == ["thread", "answered", "timer"]


def test_threads_run_one_at_a_time_in_the_order_in_which_they_were_asked_for() -> None:
    order: list[str] = []

    def job(name: str) -> None:
        order.append(f"{name} begins")
        time.sleep(0.01)
        order.append(f"{name} ends")

    async def work() -> None:
        await asyncio.gather(*(asyncio.to_thread(job, name) for name in "abc"))

    drive(work())
    assert order == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


def test_errors_of_threads_are_raised() -> None:
    async def work() -> None:
        await asyncio.to_thread(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        drive(work())


def test_time_passes_while_a_thread_waits_for_the_loop() -> None:
    async def work() -> str:
        running = asyncio.get_running_loop()

        async def slow() -> str:
            await asyncio.sleep(30)
            return "slept"

        def ask() -> str:
            return asyncio.run_coroutine_threadsafe(slow(), running).result()

        return await asyncio.to_thread(ask)

    assert drive(work()) == ("slept", 30.0)


def test_a_thread_that_waits_for_what_cannot_happen_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE_S", 0.05)
    free = threading.Event()

    async def work() -> None:
        await asyncio.to_thread(free.wait)

    try:
        with pytest.raises(Stalled, match=r"a plain handler has not returned for 0\.05 s of real time"):
            drive(work())
    finally:
        free.set()


def test_there_is_no_io() -> None:
    async def work() -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    with pytest.raises(RuntimeError, match="There is no I/O in virtual time, so the event loop has no create_connection"):
        drive(work())


def test_a_plain_handler_waits_for_the_database_that_an_async_one_holds_for_a_while() -> None:
    server = ActionServer("both", store=SqliteStore())
    order: list[str] = []

    @server.action(undo=None)
    async def slow(call: Call) -> None:
        db = await call.open_db()
        await asyncio.sleep(20)
        db.execute("CREATE TABLE told (what TEXT)")
        order.append("slow")

    @server.action(undo=None)
    def quick(call: Call) -> None:
        if call.node != "end":
            call.db.execute("INSERT INTO told VALUES ('quick')")
        order.append(call.node)

    saga = Saga("both").append_parallel(action("slow", "slow"), action("quick", "quick")).append(action("end", "quick"))
    with SagaTester(server) as sagas:
        run = sagas.run(saga)

        assert run.done
        assert order == ["slow", "quick", "end"]
        assert sagas.query("both", "SELECT what FROM told") == [("quick",)]
