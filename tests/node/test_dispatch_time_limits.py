"""The time limits of many calls, of which nearly all are answered long before."""

import asyncio

from waiting_support import until

from sec.dispatch import time_limits
from sec.dispatch.time_limits import TimeLimits


async def test_calls_that_are_open_when_their_time_is_up_are_late_in_that_order() -> None:
    open_calls, late = {1, 2, 3, 4}, list[int]()

    def take(number: int) -> None:
        open_calls.discard(number)
        late.append(number)

    limits = TimeLimits(open_calls, take)
    limits.add(1, 3_600.0)
    limits.add(2, 0.02)
    limits.add(3, 0.001)
    limits.add(4, 0.01)
    open_calls.discard(4)  # it was answered
    await until(lambda: len(late) == 2)
    assert late == [3, 2]
    assert open_calls == {1}


async def test_what_is_late_may_be_called_again_there_and_then() -> None:
    open_calls, late = {1, 2}, list[int]()

    def take(number: int) -> None:
        open_calls.discard(number)
        late.append(number)
        if number == 1:
            limits.add(2, 0.0)

    limits = TimeLimits(open_calls, take)
    limits.add(1, 0.001)
    await until(lambda: late == [1, 2])


async def test_limits_of_calls_that_are_over_do_not_fill_the_memory() -> None:
    open_calls = set(range(0, 100_000, 100))
    limits = TimeLimits(open_calls, lambda number: None)
    for number in range(100_000):
        limits.add(number, 3_600.0)
    assert len(limits._heap) <= 2 * len(open_calls) + 2 * time_limits.SPARE  # noqa: SLF001
    kept = {number for _, number in limits._heap}  # noqa: SLF001
    assert open_calls <= kept


async def test_after_all_is_cleared_nothing_is_late() -> None:
    late: list[int] = []
    limits = TimeLimits({1, 2}, late.append)
    limits.add(1, 0.001)
    limits.clear()
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.02, passed.set_result, None)
    await passed
    assert not late
