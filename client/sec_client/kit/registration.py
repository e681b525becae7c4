"""Keeps an action server known to the cluster."""

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence

from sec_protos.v1 import action_server_pb2, coordinator_pb2

from sec_client.errors import SagaError
from sec_client.transport import Cluster, Metadata, Pause, Tls

_CALL_S = 5.0
"""For one registration through any of the addresses; far below the time for which one holds."""
_LEAVE_S = 1.0
"""For taking the server out: a cluster that is away must not hold up the stop."""
_LEAST_TTL_S = 0.3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class Registration:
    """Registers an action server with the SEC nodes again and again, over their absence, until it is stopped.

    What goes wrong is logged when it begins and when it ends, not at every try.
    """

    def __init__(
        self,
        sec: str | Sequence[str],
        *,
        server_name: str,
        address: str,
        actions: Sequence[action_server_pb2.ActionDescription],
        tls: Tls | None,
        metadata: Mapping[str, str] | Metadata,
        logger: logging.Logger,
    ) -> None:
        self._cluster = Cluster(sec, tls=tls, metadata=metadata, timeout_s=_CALL_S)
        self._message = coordinator_pb2.RegisterActionServerRequest(
            instance_id=secrets.token_hex(16), server_name=server_name, address=address, actions=actions
        )
        self._logger = logger
        self._registered = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._trouble = ""
        self._calling = False  # a call that was cut off may have registered the server

    def start(self) -> None:
        self._loop = asyncio.create_task(self._keep(), name="sec-registration")

    async def wait_registered(self) -> None:
        """Returns once the cluster knows the server."""
        await self._registered.wait()

    async def stop(self) -> None:
        """Takes the server out of the cluster, as far as an SEC node can be reached."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._registered.is_set() or self._calling:
            message = coordinator_pb2.UnregisterActionServerRequest(instance_id=self._message.instance_id)
            try:
                await self._cluster.call(lambda stub: stub.UnregisterActionServer, message, budget_s=_LEAVE_S, attempt_s=_LEAVE_S)
            except SagaError as e:
                self._logger.warning("cannot be unregistered, the cluster will notice by itself: %s", e)
        await self._cluster.close()

    async def _keep(self) -> None:
        pause = Pause(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            self._calling = True
            try:
                answer = await self._cluster.call(lambda stub: stub.RegisterActionServer, self._message)
            except SagaError as e:
                if self._trouble != e.code:
                    self._trouble = e.code
                    self._logger.warning("cannot be registered, trying on: %s", e)
                self._calling = not e.definite
                await asyncio.sleep(pause.next_s())
                continue
            self._calling = False
            if self._trouble or not self._registered.is_set():
                self._trouble = ""
                self._logger.info("registered as %s (%s)", self._message.address, self._message.server_name)
            self._registered.set()
            pause.reset()
            await asyncio.sleep(max(answer.ttl_s, _LEAST_TTL_S) / 3)
