"""The directory of action servers of one SEC node: those of the test, called in this process."""

import asyncio

from sec.dispatch.calls import Call, Pending, Tell, told
from sec.dispatch.directory import Directory
from sec.sim.loop import SimProcess
from sec.store.mirror import Mirror
from sec_testing.servers import Servers


class InProcessDirectory(Directory):
    """What one SEC node knows of the action servers, and how it calls them."""

    def __init__(self, registrations: Mirror, servers: Servers, sec_node: str, process: SimProcess) -> None:
        super().__init__(registrations, (), None, max_output_bytes=0, max_calls=0)
        self.process = process
        self._in_process = servers
        self._sec_node = sec_node
        servers.add(self)

    def refresh(self) -> None:
        """Looks at what is offered now."""
        self.schemas = self._in_process.schemas()
        offered = self._in_process.offered()
        if offered != self.offered:
            self.offered = offered
            for listener in self._listeners:
                listener()

    def call(self, call: Call, tell: Tell) -> Pending:
        return told(asyncio.get_running_loop().create_task(self._in_process.call(self._sec_node, call, self.heard)), tell)

    def cancel(self, idempotency_key: str) -> None:
        self._in_process.cancel(idempotency_key)

    @property
    def calls(self) -> int:
        return 0
