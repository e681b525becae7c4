"""The live view of a saga: its tree, painted anew whenever its log grows, and meanwhile for what actions under way report, which is in no log."""

import asyncio
from contextlib import aclosing, suppress

from rich.console import Console
from rich.live import Live
from sec_client import NodeState, SagaView, aio

from secctl import render

_LEAST_PAUSE_S = 0.1
"""Between two paintings: a saga may write far more records than a person can see."""
_REPORTS_PAUSE_S = 1.0
"""Between two looks at what actions report."""
_CALLED = (NodeState.WORKING, NodeState.RETRYING, NodeState.UNDOING)


async def follow(client: aio.Client, saga_id: str, console: Console) -> SagaView:
    """Paints the saga until it has ended; answers how it ended. The last painting stays on the screen."""
    view = await client.get(saga_id)
    changed = asyncio.Event()

    async def watch() -> None:
        async with aclosing(client.watch(saga_id, view.next_sequence)) as records:
            async for _ in records:
                changed.set()

    with Live(render.tree(view), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        watching = asyncio.create_task(watch())
        try:
            while not view.state.ended:
                change = asyncio.create_task(changed.wait())
                called = any(node.action and node.state in _CALLED for node in view.nodes)
                pause_s = _REPORTS_PAUSE_S if called else None
                await asyncio.wait((change, watching), timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                if watching.done():
                    watching.result()
                changed.clear()
                view = await client.get(saga_id)
                live.update(render.tree(view), refresh=True)
                await asyncio.sleep(_LEAST_PAUSE_S)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await watching
    return view
