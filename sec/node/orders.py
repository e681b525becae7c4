"""Commands that wait in the store for the owners of their sagas, mirrored, and handed to the drivers of ours."""

import logging
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.message import DecodeError
from sec_model.commands_codec import command_from_proto
from sec_protos.v1 import coordinator_pb2

from sec.core.decide import Ordered
from sec.core.records import SagaId
from sec.store.keys import Keys
from sec.store.mirror import Change, Mirror

_log = logging.getLogger(__name__)

MAX_PER_STEP = 32
"""Commands that one append takes up: each is one operation more in its transaction. Those that were given before the start are to be taken
up before the first node starts, and so by one step."""


class Orders:
    """The waiting commands of all active sagas, by saga. `deliver` is called with each new one."""

    def __init__(self, keys: Keys, live: Mirror, deliver: Callable[[SagaId, Ordered], None]) -> None:
        self._keys = keys
        self._deliver = deliver
        self._waiting: dict[SagaId, dict[str, Ordered]] = {}
        live.subscribe(self._live_changed)

    def of(self, saga_id: SagaId) -> list[Ordered]:
        """The commands that wait for a saga, as far as the mirror knows."""
        return list(self._waiting.get(saga_id, {}).values())

    def _live_changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if not change.key.startswith(self._keys.commands):
                continue
            saga, _, command_id = change.key[len(self._keys.commands) :].decode().partition("/")
            saga_id = SagaId(saga)
            if change.new is None:
                waiting = self._waiting.get(saga_id, {})
                waiting.pop(command_id, None)
                if not waiting:
                    self._waiting.pop(saga_id, None)
                continue
            for ordered in read_orders(saga_id, [(command_id, change.new.value)]):
                self._waiting.setdefault(saga_id, {})[command_id] = ordered
                self._deliver(saga_id, ordered)


def read_orders(saga_id: SagaId, commands: Iterable[tuple[str, bytes]]) -> list[Ordered]:
    """Commands as the store has them. One that this version cannot read is left to wait."""
    orders = []
    for command_id, data in commands:
        try:
            message = coordinator_pb2.CommandSagaRequest.FromString(data)
            orders.append(Ordered(command_id, message.by, command_from_proto(message.command)))
        except (DecodeError, ValueError) as error:
            _log.error('The command "%s" for saga "%s" cannot be read and waits: %s', command_id, saga_id, error)
    return orders
