"""What a tester runs: an event loop in virtual time, and on it SEC nodes, their store, and action servers. Driven from a thread that waits for it."""

import asyncio
import atexit
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from sec_client import kit
from sec_client.aio import Client

from sec.sim.loop import START_S, Stalled
from sec_testing.loop import VirtualLoop
from sec_testing.nodes import Nodes
from sec_testing.servers import Servers

T = TypeVar("T")
StoreFactory = Callable[[], kit.Store]

MAX_STEPS = 20_000_000
"""Turns of the event loop for one thing that is waited for: some minutes of real time."""
IN_MEMORY = "/dev/shm"
"""Where stores are, if the system has it: they are committed often, and need not outlive anything."""


class NotSettled(Exception):
    """A saga has not come to rest within the virtual time that it was given. The message says where it stands."""


class World:
    """Made when it is first needed, and closed by `close`."""

    def __init__(
        self, servers: Sequence[kit.ActionServer], stores: Mapping[str, StoreFactory], nodes: int, seed: int, start: datetime
    ) -> None:
        self.loop = VirtualLoop()  # type: ignore[abstract] # what is for I/O is not there
        self.servers = Servers(self.loop, self.now, START_S, self._happened)
        self.nodes = Nodes(self.loop, self.servers, self._now_us, nodes, seed, self._happened)
        self._start = start
        self._stores = stores
        self._folder = TemporaryDirectory(prefix="sec-testing-", dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None)
        atexit.register(self._close_at_exit)  # it is kept until it is closed: its coroutines cannot be collected in any order
        self._waiting: list[asyncio.Event] = []
        self.changes = 0
        """Counts what has happened: records and answers."""
        try:
            for server in servers:
                self.serve(server)
            self.drive(self.nodes.start())
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> Client:
        return self.nodes.client

    def now(self) -> datetime:
        """By the virtual wall clock."""
        return self._start + timedelta(seconds=self.loop.time() - START_S)

    def _now_us(self) -> int:
        return round(self.now().timestamp() * 1e6)

    def serve(self, server: kit.ActionServer) -> None:
        """Lets one more action server be called."""
        self.drive(self.servers.open(server, self._store_for(server)))

    def _store_for(self, server: kit.ActionServer) -> kit.Store:
        if server.name in self._stores:
            return self._stores[server.name]()
        if type(server.store) is kit.SqliteStore:
            return kit.SqliteStore(Path(self._folder.name) / f"{len(self.servers.processes)}.db")
        return kit.MemoryStore() if type(server.store) is kit.MemoryStore else server.store

    def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Lets time pass until something is done, and answers what came of it. Raises what it raises, and `Stalled`."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._drive(work)
        with ThreadPoolExecutor(1) as apart:  # a thread has one event loop at most
            return apart.submit(self._drive, work).result()

    def _drive(self, work: Coroutine[Any, Any, T]) -> T:
        task = self.loop.start(None, work)
        try:
            self.loop.run(lambda: task.done() or self.nodes.fault is not None, MAX_STEPS)
        finally:
            if not task.done():
                task.cancel()
        if self.nodes.fault is not None and not task.done():
            raise self.nodes.fault
        return task.result()

    def _happened(self) -> None:
        self.changes += 1
        for event in self._waiting:
            event.set()

    async def until(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Waits until something holds, which is looked at whenever something has happened. False: it does not, after this time."""
        changed = asyncio.Event()
        self._waiting.append(changed)
        try:
            async with asyncio.timeout(within_s):
                while not holds():
                    changed.clear()
                    await changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(changed)

    def _close_at_exit(self) -> None:
        with suppress(RuntimeError):  # there are no threads any more to close a database on, which goes with the process
            self.close()

    def close(self) -> None:
        """Ends everything. What the action servers have in hand is cut off."""
        atexit.unregister(self._close_at_exit)
        self.nodes.end()
        try:
            self.drive(self.servers.close())
        finally:
            before = logging.root.manager.disable
            logging.disable(logging.CRITICAL)  # what is cut off complains
            try:
                with suppress(Stalled):
                    self.loop.wind_up([*self.nodes.processes, *self.servers.processes])
            finally:
                logging.disable(before)
            self.loop.close()
            self._folder.cleanup()
