"""An action server for the tests of the testing helpers, and the world that it changes."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sec_client import RetryPolicy, Saga, action
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore, SqliteStore, Store

FEW = RetryPolicy(max_attempts=3, attempt_timeout_s=10)


@dataclass
class Shop:
    """What there is of effects, by node, and what handlers were called for. `plain`: on threads."""

    plain: bool = False
    store: Store = field(default_factory=MemoryStore)
    effects: Counter[str] = field(default_factory=Counter)
    handled: list[str] = field(default_factory=list)
    leaves: bool = False
    """Its undo does nothing."""
    counts: bool = False
    """Its do has its effect again whenever it is called."""
    takes_s: float = 0.0

    def clear(self) -> None:
        self.effects.clear()
        self.handled.clear()

    def left(self, _: object = None) -> dict[str, int]:
        """The effects that are there."""
        return {node: count for node, count in self.effects.items() if count}

    def server(self, name: str = "shop") -> ActionServer:
        server = ActionServer(name, store=self.store)

        def do(call: Call) -> Any:
            self.handled.append(call.node)
            if (call.params or {}).get("refuse") == call.node:
                raise ActionFailed(f"No {call.node} to be had.", code="refused")
            self.effects[call.node] = self.effects[call.node] + 1 if self.counts else 1
            return {"node": call.node, **call.inputs}

        def undo(call: Call) -> None:
            self.handled.append(f"undo {call.node}")
            if not self.leaves:
                self.effects[call.node] = 0

        async def do_async(call: Call) -> Any:
            await asyncio.sleep(self.takes_s)
            return do(call)

        async def undo_async(call: Call) -> None:
            undo(call)

        if self.plain:
            server.action("take")(do).undo(undo)
        else:
            server.action("take")(do_async).undo(undo_async)
        return server


def chain(*nodes: str, retry: RetryPolicy = FEW) -> Saga:
    """A saga whose nodes run one after the other."""
    saga = Saga("chain")
    for node in nodes:
        saga.append(action(node, "take", retry=retry, undo_retry=retry))
    return saga


def sqlite_server() -> ActionServer:
    """One whose effects are in its SQLite file, by plain handlers."""
    server = ActionServer("rooms", store=SqliteStore("must-not-be-made.db"))

    @server.action()
    def take(call: Call) -> str:
        call.db.execute("CREATE TABLE IF NOT EXISTS rooms (key TEXT PRIMARY KEY, node TEXT)")
        call.db.execute("INSERT INTO rooms VALUES (?, ?)", (call.key, call.node))
        return call.node

    @take.undo
    def give_back(call: Call) -> None:
        call.db.execute("CREATE TABLE IF NOT EXISTS rooms (key TEXT PRIMARY KEY, node TEXT)")
        call.db.execute("DELETE FROM rooms WHERE key = ?", (call.key,))

    return server
