"""Drivers that block: their work is done on threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(threads: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    """Runs a function on one of the threads. Cancellation waits until it has ended, so that it never overlaps with what comes next."""
    future = asyncio.get_running_loop().run_in_executor(threads, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
