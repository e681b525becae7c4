"""Waiting for conditions, with a deadline: what tests do instead of sleeping."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

DEADLINE_S = 30.0


async def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
    """Returns when the condition holds; it is asked again and again, since what it looks at sets no event."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 # see above
            await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Awaitable[Any]], deadline_s: float = DEADLINE_S) -> Any:
    """The first answer that is true in the sense of `bool`."""
    async with asyncio.timeout(deadline_s):
        while not (answer := await condition()):  # noqa: ASYNC110 # as above
            await asyncio.sleep(0.005)
        return answer
